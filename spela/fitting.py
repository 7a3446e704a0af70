"""Linear SPELA networks on rows in memory: building one, an epoch, and the mean of its layers' scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from spela.data import Batches
from spela.layers import RowNorm, SpelaLinear
from spela.network import SpelaSequential
from spela.training import TrainingDivergedError

__all__ = ["build_rows_network", "held_out", "mean_scores", "scoring_dtype", "train_epoch"]

# Rows scored at a time: a wide layer's outputs stay in cache.
_ROWS = 1000


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


def train_epoch(
    net: SpelaSequential,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    target: Tensor,
    *,
    batch_size: int,
    generator: torch.Generator,
    rate: Callable[[float], float],
) -> float:
    """One pass over the rows in a new order.

    Args:
        net: The network, in float32.
        optimizer: Of its parameters.
        x: (N, I) float rows.
        target: (N,) int64 labels.
        batch_size: Rows a step.
        generator: CPU source of the order.
        rate: Learning rate by the share of the epoch done, in [0, 1).

    Returns:
        The mean loss of the layers.

    Raises:
        TrainingDivergedError: If it is not finite.
    """
    net.train()
    batches = Batches(x, target, batch_size, shuffle=True, generator=generator)
    total = x.new_zeros((), dtype=torch.float32)
    for step, (rows, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate(step / len(batches))
        total += net.local_step(rows, labels, optimizer).mean() * len(labels)
    loss = float(total) / len(target)
    if loss - loss != 0:
        raise TrainingDivergedError(f"the loss became {loss}: lower the learning rate")
    return loss


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
