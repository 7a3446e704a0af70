"""Accuracy of every layer on a dataset's split."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spela.data import Batches
from spela.layers.modes import in_eval_mode

__all__ = [
    "Evaluation",
    "LayerwiseClassifier",
    "batch_statistics",
    "batch_statistics_accuracy",
    "evaluate",
]

# Large enough for full-speed GEMMs, small enough that a wide layer's output stays in cache.
EVALUATION_BATCH = 1000
# Input values at a time: the maps of a convolution are some hundred times larger.
EVALUATION_VALUES = 784_000
TOP = 5


class LayerwiseClassifier(Protocol):
    """What evaluation and training need of a network: SPELA's and the baselines' have it."""

    training: bool

    def train(self, mode: bool = True) -> object:
        """As nn.Module."""

    def layer_scores(self, x: Tensor) -> list[Tensor]:
        """Class scores (B, C) of every layer that can answer."""

    def local_step(self, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """One update; losses (L,)."""


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    Attributes:
        accuracy: Share of samples each layer gets right, 0..1, first layer first.
        vote_accuracy: The same for the mean of all layers' scores.
        confusion: (C, C) int64 counts of the last layer, rows the true class.
        top5_accuracy: Share of samples whose class is among a layer's five best, first layer first; None
            with five classes or fewer, where it would be 1.
    """

    accuracy: list[float]
    vote_accuracy: float
    confusion: Tensor
    top5_accuracy: list[float] | None = None


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """Batch norms use the statistics of the batch at hand, in eval mode too, and learn none.

    The authors' notebooks evaluate this way; torch's default, running statistics, is ours.

    Args:
        net: Any module; its batch norms are as before afterwards.
    """
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm)]
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:
        norm.running_mean = norm.running_var = None
    try:
        yield
    finally:
        for norm, (mean, variance) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var = mean, variance


@torch.no_grad()
def evaluate(
    net: LayerwiseClassifier, x: Tensor, y: Tensor, batch_size: int | None = None
) -> Evaluation:
    """Accuracy of every layer, in eval mode; the mode is put back afterwards.

    Args:
        net: A network with `layer_scores`.
        x: (N, ...) samples as stored by a dataset.
        y: (N,) int64 labels.
        batch_size: Samples at a time; None: as many as run well, which depends on their size.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: If there is no sample.
    """
    with in_eval_mode(net):  # type: ignore[arg-type]  # a module too
        correct, confusion, among_five = None, None, None
        size = batch_size or max(1, min(EVALUATION_BATCH, EVALUATION_VALUES // x.shape[1:].numel()))
        for batch, target in Batches(x, y, size, shuffle=False):
            scores = net.layer_scores(batch)
            labels = torch.stack([*(s.argmax(dim=1) for s in scores), sum(scores).argmax(dim=1)])  # type: ignore[union-attr]
            hits = (labels == target).sum(dim=1)  # (L + 1,)
            classes = scores[-1].shape[1]
            if classes > TOP:
                near = torch.stack([_among_best(s, target) for s in scores])  # (L,)
                among_five = near if among_five is None else among_five + near
            counts = torch.bincount(target * classes + labels[-2], minlength=classes * classes)
            correct = hits if correct is None else correct + hits
            confusion = counts if confusion is None else confusion + counts
    assert correct is not None  # Batches are of one sample at least
    assert confusion is not None
    shares = (correct.double() / len(y)).tolist()
    top5 = None if among_five is None else (among_five.double() / len(y)).tolist()
    return Evaluation(shares[:-1], shares[-1], confusion.reshape(classes, classes).cpu(), top5)


def _among_best(scores: Tensor, target: Tensor) -> Tensor:
    """How many samples have their class among the TOP best of its row: () int64."""
    return (scores.topk(TOP, dim=1).indices == target[:, None]).sum()


def batch_statistics_accuracy(
    net: nn.Module, x: Tensor, y: Tensor, batch_size: int
) -> list[float] | None:
    """Accuracy of every layer with each batch's own statistics; None where there is no batch norm.

    Args:
        net: A network with `layer_scores`.
        x, y: As for `evaluate`.
        batch_size: Samples that are normalised together.

    Returns:
        Shares 0..1, first layer first; None, too, for a sample alone, which has no statistics.
    """
    if not any(isinstance(m, _BatchNorm) for m in net.modules()):
        return None
    # A last batch of one sample, which a map of one pixel cannot normalise, joins others.
    sizes = range(batch_size, max(batch_size, len(y)) + 1)
    size = batch_size if batch_size == 1 else next((s for s in sizes if len(y) % s != 1), None)
    if size is None:
        return None
    with batch_statistics(net):
        return evaluate(net, x, y, size).accuracy  # type: ignore[arg-type]
