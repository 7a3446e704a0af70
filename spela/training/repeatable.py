"""The same bits from the same steps on a GPU: cuDNN's convolutions may otherwise add in any order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["repeatable_convolutions"]


@contextmanager
def repeatable_convolutions() -> Iterator[None]:
    """Within the block cuDNN takes only algorithms that give the same bits each time; on a CPU all do.

    Example:
        >>> with repeatable_convolutions():
        ...     torch.backends.cudnn.deterministic
        True
    """
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before
