"""Passes over rows in memory: several in one compiled call, the rows' order, what dropout leaves out."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spela.data.batches import gather
from spela.layers.chain import steps_a_call
from spela.network import SpelaSequential
from spela.training import TrainingDivergedError

__all__ = ["cosine_rate", "drop_features_", "epochs_a_call", "train_epochs"]

# Numbers up to which torch stays on the calling thread: on a busy machine it waits longer for others than it
# computes.
_SERIAL = 2**15 - 1


def epochs_a_call(net: SpelaSequential, samples: int, batch_size: int) -> int:
    """How many epochs over so many samples take a tenth of a second or less: at least 1.

    Example:
        >>> from spela.estimator.network import build_rows_network
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
        >>> from spela.estimator.network import build_rows_network
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
            drop_features_(rows, dropout, generators)
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


def drop_features_(rows: Tensor, share: float, generators: Sequence[torch.Generator]) -> None:
    """Set a share of the numbers to zero, drawn anew for each row, and scale the others to the same mean.

    Drawn from generators of its own, unlike nn.Dropout: torch's global one is the caller's. It is no part of
    the network, which learns without it in `partial_fit`.

    Args:
        rows: (N, I) float32, changed in place; as many for each generator, one after the other.
        share: In [0, 1), to 16 bits.
        generators: CPU sources.

    Source: Srivastava et al., "Dropout", JMLR 2014, on the inputs alone.

    Example:
        >>> rows = torch.ones(100, 50)
        >>> drop_features_(rows, 0.5, [torch.Generator().manual_seed(0)])
        >>> rows.unique()
        tensor([0., 2.])
    """
    dropped = min(round(share * 2**16), 2**16 - 1)
    each = rows.numel() // len(generators)
    # Four lots of 16 bits a draw, compared as floats: a tenth of the time of torch's bernoulli_.
    drawn = torch.empty(len(generators), -(-each // 4), dtype=torch.int64, device="cpu")
    for draws, generator in zip(drawn, generators, strict=True):
        for part in draws.split(_SERIAL):
            part.random_(-(2**63), None, generator=generator)
    lots = drawn.view(torch.int16)[:, :each].reshape(rows.shape).to(rows.device)
    a_part = max(1, _SERIAL // rows.shape[1])
    for numbers, lot in zip(rows.split(a_part), lots.split(a_part), strict=True):
        numbers.mul_(lot.float().ge_(dropped - 2**15)).mul_(2**16 / (2**16 - dropped))


def cosine_rate(first: float, epochs: int, start: int, done: int, share: float) -> float:
    """The learning rate `done` epochs and a share of the next after epoch `start`: half a cosine to zero.

    Example:
        >>> cosine_rate(0.5, 4, 1, 1, 0.0)
        0.25
    """
    # Whole numbers first: the same epoch has the same rate, whatever it is counted from.
    return first * 0.5 * (1 + math.cos(math.pi * (start + done + share) / epochs))
