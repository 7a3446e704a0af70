"""Linear SPELA networks on rows in memory: building one, an epoch, and the mean of its layers' scores."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn import config_context
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from spela.data.batches import gather
from spela.layers import RowNorm, SpelaLinear
from spela.layers.chain import steps_a_call
from spela.network import SpelaSequential
from spela.training import TrainingDivergedError

__all__ = [
    "LARGEST",
    "build_rows_network",
    "check_range",
    "cosine_rate",
    "drop_features_",
    "epochs_a_call",
    "features_as_given",
    "held_out",
    "mean_scores",
    "plain_mode",
    "scoring_dtype",
    "train_epochs",
]

# Numbers up to which torch stays on the calling thread: on a busy machine it waits longer for others than it
# computes.
_SERIAL = 2**15 - 1
# Rows scored at a time: a wide layer's outputs stay in cache.
_ROWS = 1000
LARGEST = float(np.finfo(np.float32).max)
# A layer's norm is a sum of squares of sums of features: from about 1e18 on it overflows float32, all
# cosines are 0 and nothing is learnt.
_LARGEST_SCALED = 1e15


@contextmanager
def plain_mode() -> Iterator[None]:
    """Training and scoring as in a fresh process, whatever modes the program around has set.

    Gradients are on, new tensors are no inference tensors, NumPy's underflow is no error, and
    scikit-learn's transformers return arrays.

    Example:
        >>> with torch.inference_mode(), plain_mode():
        ...     torch.is_grad_enabled(), torch.ones(1).is_inference()
        (True, False)
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        np.errstate(all="ignore"),
        config_context(transform_output="default"),
    ):
        yield


def check_range(
    x: np.ndarray, scaled: np.ndarray | None = None, names: Sequence[str] | None = None
) -> None:
    """Refuse numbers that float32 cannot hold, or whose squares a layer cannot sum.

    Args:
        x: (N, I) features as they came.
        scaled: (N, I) as the network takes them; None: not known yet.
        names: The features' names, if they have some.

    Raises:
        ValueError: If one of x is NaN, infinite or beyond float32, or one of scaled beyond 1e15; names
            the first such feature.

    Example:
        >>> check_range(np.array([[1.0, 2.0], [3.0, 1e40]]))
        Traceback (most recent call last):
        ...
        ValueError: feature 1 of X is 1e+40 in row 1, beyond float32: remove such values or scale it
    """
    numbers, limit = (x, LARGEST) if scaled is None else (scaled, _LARGEST_SCALED)
    if -limit <= numbers.min(initial=0) and numbers.max(initial=0) <= limit:  # false of NaN
        return
    fits = np.abs(numbers) <= limit
    row, feature = (int(index) for index in np.argwhere(~fits)[0])
    name = f"feature {feature}" + ("" if names is None else f" ({names[feature]!r})")
    reason = "beyond float32"
    if scaled is not None:
        reason = f"{scaled[row, feature]:g} as the network takes it, beyond 1e15"
    raise ValueError(
        f"{name} of X is {x[row, feature]:g} in row {row}, {reason}: remove such values or scale it"
    )


def features_as_given(x: Any) -> Any:
    """Features untouched, unless a conversion to float64 would drop something of them without a word.

    Args:
        x: Whatever was given as X.

    Raises:
        ValueError: If values are masked, or are times or dates, whose unit decides the numbers.

    Example:
        >>> features_as_given(np.ma.masked_less([[1.0, -9.0]], 0))
        Traceback (most recent call last):
        ...
        ValueError: X has masked values, which would count as numbers: fill or remove them
    """
    if np.ma.is_masked(x):
        raise ValueError("X has masked values, which would count as numbers: fill or remove them")
    dtypes = getattr(x, "dtypes", [getattr(x, "dtype", None)])  # a data frame has several
    if any(getattr(dtype, "kind", "") in ("m", "M") for dtype in np.ravel(dtypes)):
        raise ValueError("X has times or dates: turn them into numbers of a unit that you choose")
    return x


def build_rows_network(
    features: int, sizes: Sequence[int], num_classes: int, seed: int, **settings: Any
) -> SpelaSequential:
    """A float32 SpelaLinear for every size, with a `RowNorm` before each but the first.

    Args:
        features: I of the input.
        sizes: Outputs of each layer.
        num_classes: C.
        seed: Of class vectors and weights; torch's global generator is left as it is.
        **settings: Of `SpelaLinear`.

    Returns:
        The network, on the CPU.

    Raises:
        ValueError: As `SpelaLinear`.

    Example:
        >>> build_rows_network(4, (8, 8), 3, seed=0)(torch.randn(5, 4)).shape
        torch.Size([5, 3])
    """
    generator = torch.Generator().manual_seed(seed)
    modules: list[nn.Module] = []
    # nn.Linear draws once from the global generator before the layer draws from its own.
    with torch.random.fork_rng(devices=[]):
        for size in sizes:
            if modules:
                modules.append(RowNorm("rms"))
            layer = SpelaLinear(
                features,
                size,
                num_classes,
                generator=generator,
                device="cpu",
                dtype=torch.float32,
                **settings,
            )
            modules.append(layer)
            features = size
    return SpelaSequential(*modules)


def held_out(
    x: np.ndarray, labels: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Split off a part, by class where that leaves every class in both parts.

    Args:
        x: (N, I) rows.
        labels: (N,) class numbers from 0.
        share: Of the rows to hold out, in (0, 1).
        seed: Of the choice.

    Returns:
        Rows, rows held out, labels, labels held out.

    Raises:
        ValueError: If a part would be empty.

    Example:
        >>> [len(part) for part in held_out(np.ones((20, 3)), np.arange(20) % 2, 0.2, seed=0)]
        [16, 4, 16, 4]
    """
    counts = np.bincount(labels)
    held = math.ceil(share * len(labels))
    by_class = counts.min() > 1 and min(held, len(labels) - held) >= len(counts)
    rest, part, rest_labels, part_labels = train_test_split(
        x,
        labels,
        test_size=share,
        stratify=labels if by_class else None,
        random_state=seed,
    )
    return rest, part, rest_labels, part_labels


def epochs_a_call(net: SpelaSequential, samples: int, batch_size: int) -> int:
    """How many epochs over so many samples take a tenth of a second or less: at least 1.

    Example:
        >>> epochs_a_call(build_rows_network(4, (10,), 2, seed=0), samples=100, batch_size=10) > 100
        True
    """
    return max(1, steps_a_call(net, batch_size) // -(-samples // batch_size))


def train_epochs(
    net: SpelaSequential,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    target: Tensor,
    *,
    batch_size: int,
    generators: Sequence[torch.Generator],
    rate: Callable[[int, float], float],
    dropout: float = 0.0,
) -> list[float]:
    """Passes over the rows, each in a new order; several share a call: at most `epochs_a_call`.

    Args:
        net: The network, in float32.
        optimizer: Of its parameters.
        x: (N, I) float rows.
        target: (N,) int64 labels.
        batch_size: Most rows a step.
        generators: CPU source of each pass's order, and of what dropout leaves out there.
        rate: Learning rate by how many of these passes are done, and the share of the next, in [0, 1).
        dropout: Share of the features that each row goes without, in [0, 1).

    Returns:
        The mean loss of the layers in every pass.

    Raises:
        TrainingDivergedError: If one is not finite, or a weight is not in the end.

    Example:
        >>> net = build_rows_network(4, (8, 8), 3, seed=0)
        >>> x, target = torch.randn(10, 4), torch.arange(10) % 3
        >>> optimizer = torch.optim.SGD(net.parameters())
        >>> drawn = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        >>> len(train_epochs(net, optimizer, x, target, batch_size=4, generators=drawn, rate=lambda *_: 0.1))
        2
    """
    net.train()
    samples, passes = len(target), len(generators)
    each = -(-samples // batch_size)
    # Equal batches, to one row: a last one of a few rows would be as large a step, in a poorer direction.
    a_pass = [(samples + step) // each for step in range(each)]
    sizes = a_pass * passes
    rates = [rate(done, step / each) for done in range(passes) for step in range(each)]
    # Several passes are one call; one alone may take more.
    at_once = len(sizes) if passes > 1 else steps_a_call(net, batch_size)
    order = torch.cat([torch.randperm(samples, generator=g, device="cpu") for g in generators])
    losses = []
    for first in range(0, len(sizes), at_once):
        steps = slice(first, first + at_once)
        index, order = order.tensor_split([sum(sizes[steps])])
        rows, labels = gather(x, index), gather(target, index)
        if dropout > 0:  # of rows gathered for this call: nobody else's
            for part, generator in zip(rows.split(samples), generators, strict=True):
                drop_features_(part, dropout, generator)
        found = net.local_steps(rows, labels, optimizer, sizes[steps], rates[steps])
        losses += [sum(layers) / len(layers) for layers in found.tolist()]
    means = []
    for done in range(0, len(losses), each):
        weighted = map(operator.mul, losses[done : done + each], a_pass)
        # Rounded once: the same of a pass, however many share a call.
        means.append(math.fsum(weighted) / samples)
        if means[-1] - means[-1] != 0:
            raise TrainingDivergedError(f"the loss became {means[-1]}: lower the learning rate")
    if not all(bool(parameter.isfinite().all()) for parameter in net.parameters()):
        raise TrainingDivergedError("the last step made weights infinite: lower the learning rate")
    return means


def drop_features_(rows: Tensor, share: float, generator: torch.Generator) -> None:
    """Set a share of the numbers to zero, drawn anew for each row, and scale the others to the same mean.

    Drawn from a generator of its own, unlike nn.Dropout: torch's global one is the caller's. It is no part of
    the network, which learns without it in `partial_fit`.

    Args:
        rows: (N, I) float32, changed in place.
        share: In [0, 1), to 16 bits.
        generator: CPU source.

    Source: Srivastava et al., "Dropout", JMLR 2014, on the inputs alone.

    Example:
        >>> rows = torch.ones(100, 50)
        >>> drop_features_(rows, 0.5, torch.Generator().manual_seed(0))
        >>> rows.unique()
        tensor([0., 2.])
    """
    dropped = min(round(share * 2**16), 2**16 - 1)
    for part in rows.split(max(1, _SERIAL // rows.shape[1])):
        # Four lots of 16 bits a draw, compared as floats: a tenth of the time of torch's bernoulli_.
        drawn = torch.empty(-(-part.numel() // 4), dtype=torch.int64, device="cpu")
        lots = drawn.random_(-(2**63), None, generator=generator).view(torch.int16)[: part.numel()]
        kept = lots.to(rows.device).float().ge_(dropped - 2**15).view(part.shape)
        part.mul_(kept).mul_(2**16 / (2**16 - dropped))


def cosine_rate(first: float, epochs: int, start: int, done: int, share: float) -> float:
    """The learning rate `done` epochs and a share of the next after epoch `start`: half a cosine to zero.

    Example:
        >>> cosine_rate(0.5, 4, 1, 1, 0.0)
        0.25
    """
    # Whole numbers first: the same epoch has the same rate, whatever it is counted from.
    return first * 0.5 * (1 + math.cos(math.pi * (start + done + share) / epochs))


def scoring_dtype(device: torch.device) -> torch.dtype:
    """Float64 where the device has it: a row's scores then do not depend on its batch."""
    return torch.float32 if device.type == "mps" else torch.float64


@torch.no_grad()
def mean_scores(net: SpelaSequential, x: Tensor) -> Tensor:
    """Mean over the layers of their cosines to the class vectors.

    Args:
        net: The network.
        x: (N, I) rows in its dtype.

    Returns:
        (N, C) in [-1, 1].

    Example:
        >>> net = build_rows_network(4, (8, 8), 3, seed=0)
        >>> mean_scores(net, torch.randn(5, 4)).shape
        torch.Size([5, 3])
    """
    net.eval()
    return torch.cat([torch.stack(net.layer_scores(rows)).mean(0) for rows in x.split(_ROWS)])
