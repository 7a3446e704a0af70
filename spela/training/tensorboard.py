"""Writes a run's records to TensorBoard event files, beside metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from spela.training.loop import Listener

__all__ = ["Listeners", "TensorBoardListener"]


class TensorBoardListener:
    """A listener that writes every epoch's figures, one curve a layer.

    Args:
        folder: Where the event files go, from the first epoch on; `tensorboard --logdir` of it, or of a
            folder above, shows them. What an earlier, stopped process wrote of that epoch and later ones is
            hidden.

    Raises:
        ValueError: If the package `tensorboard` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError(
                "--tensorboard needs the package tensorboard: pip install tensorboard"
            ) from None
        self._open = partial(SummaryWriter, str(folder))
        self.writer: Any = None

    def on_epoch_start(self, epoch: int, epochs: int, steps: int) -> None:
        """Make the file, the first time: the folder is then known to be this process's."""
        if self.writer is None:
            self.writer = self._open(purge_step=epoch)

    def on_progress(self, steps_done: int, losses: list[float]) -> None:
        """Nothing: epochs are the unit here."""

    def on_epoch_end(self, record: dict[str, Any]) -> None:
        """Write the record: names are figure/layer_1, ..., and the figure's name alone for the run."""
        epoch = record["epoch"]
        for name, value in record.items():
            if name == "diagnostics":
                for layer, row in enumerate(value, start=1):
                    for figure, number in row.items():
                        if number is not None:
                            tag = f"diagnostics/{figure}/layer_{layer}"
                            self.writer.add_scalar(tag, number, epoch)
            elif isinstance(value, list):
                for layer, number in enumerate(value, start=1):
                    self.writer.add_scalar(f"{name}/layer_{layer}", number, epoch)
            elif name != "epoch":
                self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()


class Listeners:
    """Several listeners as one.

    Args:
        listeners: Told in this order.
    """

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self.listeners = listeners

    def on_epoch_start(self, epoch: int, epochs: int, steps: int) -> None:
        """Tell all."""
        for listener in self.listeners:
            listener.on_epoch_start(epoch, epochs, steps)

    def on_progress(self, steps_done: int, losses: list[float]) -> None:
        """Tell all."""
        for listener in self.listeners:
            listener.on_progress(steps_done, losses)

    def on_epoch_end(self, record: dict[str, Any]) -> None:
        """Tell all."""
        for listener in self.listeners:
            listener.on_epoch_end(record)
