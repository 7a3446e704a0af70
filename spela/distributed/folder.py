"""One run folder for all processes: rank 0 writes it, the others know what it holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from spela.distributed.ranks import Ranks
from spela.training import RunFolder

__all__ = ["SharedRunFolder"]


class SharedRunFolder(RunFolder):
    """A RunFolder that rank 0 alone writes. Every process must make the same calls.

    Args:
        path: The folder; when resuming, every process reads the checkpoint there.
        ranks: The processes of the job.
    """

    def __init__(self, path: str | os.PathLike[str], ranks: Ranks) -> None:
        super().__init__(path)
        self.ranks = ranks
        self._known: list[dict[str, Any]] = []  # what rank 0 has in metrics.jsonl

    @contextmanager
    def writing(self) -> Iterator[None]:
        """As RunFolder, on rank 0; an error of rank 0 is everyone's."""
        with ExitStack() as held:
            self.ranks.from_main(lambda: held.enter_context(RunFolder.writing(self)))
            yield

    def create(self, config: dict[str, Any]) -> None:
        """As RunFolder; an error of rank 0 is everyone's."""
        self.ranks.from_main(lambda: RunFolder.create(self, config))

    def remove_summary(self) -> None:
        """As RunFolder, on rank 0."""
        if self.ranks.is_main:
            super().remove_summary()

    def write_json(self, path: Path, value: Any) -> None:
        """As RunFolder, on rank 0."""
        if self.ranks.is_main:
            super().write_json(path, value)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of the epochs done."""
        return super().read_metrics() if self.ranks.is_main else list(self._known)

    def keep_metrics(self, epochs: int) -> None:
        """As RunFolder; every process then knows the records that stay."""
        # All have read the checkpoint before rank 0 changes the folder.
        self.ranks.sum(torch.zeros(1))

        def kept() -> list[dict[str, Any]]:
            RunFolder.keep_metrics(self, epochs)
            return RunFolder.read_metrics(self)

        self._known = self.ranks.from_main(kept)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """As RunFolder, on rank 0; the others remember it."""
        if self.ranks.is_main:
            super().append_metrics(record)
        else:
            self._known.append(record)
