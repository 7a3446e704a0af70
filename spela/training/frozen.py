"""What frozen layers make of a dataset, computed once: the layers behind them learn from that."""

from __future__ import annotations

import os
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spela.data import Batches, Dataset
from spela.layers import LocalLayer
from spela.layers.modes import output_of
from spela.network import SpelaSequential
from spela.training.evaluate import LayerwiseClassifier

__all__ = ["Learner", "behind_frozen", "freeze"]


class Learner(NamedTuple):
    """A network that learns, and the samples it learns from and is tested on.

    Attributes:
        net: Has `local_step` and `layer_scores`.
        train_x, test_x: Its samples, (N, ...) each.
    """

    net: LayerwiseClassifier
    train_x: Tensor
    test_x: Tensor


class _BehindFrozen(nn.Module):
    """The layers behind frozen ones, as the whole network's stand-in.

    A sample is one row: the frozen layers' scores, then the last one's output.

    Args:
        learning: The layers behind, which learn.
        frozen_losses: (F,) losses of the frozen layers over the training samples.
        output_shape: Of one sample's output of the last frozen layer.
        output_dtype: Of that output in training; rows are float32.
        scores: Numbers at the head of a row.
    """

    def __init__(
        self,
        learning: SpelaSequential,
        frozen_losses: Tensor,
        output_shape: tuple[int, ...],
        output_dtype: torch.dtype,
        scores: int,
    ) -> None:
        super().__init__()
        self.learning = learning
        self.frozen_losses = frozen_losses
        self.output_shape = output_shape
        self.output_dtype = output_dtype
        self.scores = scores

    def _output(self, rows: Tensor) -> Tensor:
        return rows[:, self.scores :].reshape(-1, *self.output_shape).contiguous()

    def layer_scores(self, rows: Tensor) -> list[Tensor]:
        """Scores (B, C) of every layer, the frozen ones' read off."""
        frozen = rows[:, : self.scores].tensor_split(len(self.frozen_losses), dim=1)
        return [*frozen, *self.learning.layer_scores(self._output(rows))]

    def local_step(self, rows: Tensor, target: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """One update of the layers that learn; losses (L,) of all layers."""
        output = self._output(rows).to(self.output_dtype)
        losses = self.learning.local_step(output, target, optimizer)
        return torch.cat([self.frozen_losses.to(losses.dtype), losses])


def freeze(net: nn.Module, front: int, frozen: bool) -> None:
    """Freeze a network's front and train its head, or the other way round.

    Args:
        net: Its local layers are moved in and out of training.
        front: How many of them are the front.
        frozen: Whether the front is.
    """
    layers = [module for module in net.modules() if isinstance(module, LocalLayer)]
    for index, layer in enumerate(layers):
        learns = (index < front) != frozen
        layer.requires_grad_(learns)
        layer.train(learns)


def behind_frozen(
    net: SpelaSequential,
    dataset: Dataset,
    batch_size: int,
    folder: Path,
    precision: AbstractContextManager[object],
) -> Learner | None:
    """A learner of the layers behind the frozen ones, on what those make of the dataset.

    Args:
        net: Its first local layers are frozen and in eval mode, its later ones learn, and nothing in front
            of the last frozen one draws random numbers.
        dataset: On the network's device.
        batch_size: Samples that go through the frozen layers at a time.
        folder: On the disk that lends room: on the CPU the outputs lie in a nameless file, mapped into
            memory, as those of convolutions may be larger than the memory.
        precision: The autocast of training steps; tests run without.

    Returns:
        The learner; None where there is no room.
    """
    modules = list(net)
    frozen = [i for i, m in enumerate(modules) if isinstance(m, LocalLayer) and not m.training]
    front, learning = modules[: frozen[-1] + 1], SpelaSequential(*modules[frozen[-1] + 1 :])
    try:
        with precision:
            train = _outputs(front, dataset.train_x, dataset.train_y, batch_size, folder)
        test = _outputs(front, dataset.test_x, dataset.test_y, batch_size, folder)
    except (OSError, torch.OutOfMemoryError):
        return None
    behind = _BehindFrozen(learning, train.losses, train.shape, train.dtype, train.scores)
    return Learner(behind, train.rows, test.rows)


class _Outputs(NamedTuple):
    """Rows (N, scores + output), mean losses (F,), an output's shape and dtype, how many scores a row has."""

    rows: Tensor
    losses: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    scores: int


@torch.no_grad()
def _outputs(
    front: list[nn.Module], samples: Tensor, labels: Tensor, batch_size: int, folder: Path
) -> _Outputs:
    rows, total, done = None, torch.zeros(()), 0
    for x, target in Batches(samples, labels, batch_size, shuffle=False):
        losses, scores = [], []
        for module in front:
            if isinstance(module, LocalLayer):
                loss, x = module.local_loss(x, target)
                losses.append(loss)
                scores.append(module.scores(x))
            else:
                x = output_of(module, x)
        row = torch.cat([*scores, x.flatten(1)], dim=1)
        if rows is None:
            rows = _room(len(samples), row.shape[1], row.device, folder)
        rows[done : done + len(x)] = row
        total = total + torch.stack(losses) * (len(x) / len(samples))
        done += len(x)
    assert rows is not None  # a dataset has samples
    count = sum(score.shape[1] for score in scores)
    return _Outputs(rows, total, tuple(x.shape[1:]), x.dtype, count)


def _room(count: int, width: int, device: torch.device, folder: Path) -> Tensor:
    """Float32 (count, width) on the device.

    Raises:
        OSError: If the disk has no room.
    """
    if device.type != "cpu":
        return torch.empty(count, width, device=device)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # else a full disk is found while writing, by a signal
            os.posix_fallocate(file.fileno(), 0, 4 * count * width)
        mapped = np.memmap(file, np.float32, "r+", shape=(count, width))
    return torch.from_numpy(mapped)
