"""What a run in training shows: a bar on a terminal, and a line an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from tqdm import tqdm

__all__ = ["ProgressBar"]


class ProgressBar:
    """Draws the loop's progress: a bar on a terminal, and one line an epoch anywhere.

    Args:
        opening: Lines to show before the first epoch.
    """

    def __init__(self, opening: Sequence[str] = ()) -> None:
        self.opening = list(opening)
        self.bar: tqdm[Any] | None = None
        self.epochs = 0

    def on_epoch_start(self, epoch: int, epochs: int, steps: int) -> None:
        while self.opening:
            typer.echo(self.opening.pop(0))
        self.epochs = epochs
        self.bar = tqdm(
            total=steps, desc=f"epoch {epoch}/{epochs}", unit="step", leave=False, disable=None
        )

    def on_progress(self, steps_done: int, losses: list[float]) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str("loss " + " ".join(f"{v:.3f}" for v in losses), refresh=False)
            self.bar.update(steps_done - self.bar.n)

    def on_epoch_end(self, record: dict[str, Any]) -> None:
        self.close()
        accuracy = " ".join(f"{100 * a:5.2f}" for a in record["test_accuracy"])
        loss = " ".join(f"{v:.4f}" for v in record["train_loss"])
        epoch = f"epoch {record['epoch']}/{self.epochs}"
        typer.echo(f"{epoch}  accuracy % {accuracy}  loss {loss}  {record['seconds']:.1f} s")

    def close(self) -> None:
        """Take the bar from the terminal."""
        if self.bar is not None:
            self.bar.close()
