"""Where a part runs and at which size: on the GPU, or in a dry run on the CPU at the smallest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

__all__ = ["Setting"]

_Size = TypeVar("_Size")


@dataclass(frozen=True)
class Setting:
    """What every part is told.

    Attributes:
        dry_run: Whether there is no GPU, and only the code is tried.
        folder: For logs and what parts leave for each other.
        data_root: Where datasets are; None for the default.
    """

    dry_run: bool
    folder: Path
    data_root: Path | None = None

    @property
    def device(self) -> str:
        """Where tensors live."""
        return "cpu" if self.dry_run else "cuda"

    def pick(self, full: _Size, dry: _Size) -> _Size:
        """A size or count: the campaign's, or the dry run's.

        Example:
            >>> Setting(True, Path(".")).pick(512, 2)
            2
        """
        return dry if self.dry_run else full
