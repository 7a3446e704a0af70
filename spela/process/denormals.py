"""Denormal numbers become zero while training runs, because some processors compute with them slowly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["flush_denormals"]


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Flush denormal numbers in this thread until the block ends.

    Adam's first moments of weights that get no gradient any more (dead units) decay into denormal numbers and
    stay there: 0.9 of the smallest rounds to itself. Steps then take longer. The command line runs in such a
    block. Torch's other threads take the setting, once, from the thread that starts them: a program that
    computes on several threads calls `torch.set_flush_denormal(True)` before its first operation.

    Source: torch.set_flush_denormal.

    Example:
        >>> import torch
        >>> with flush_denormals():
        ...     torch.tensor(1e-40).item()
        0.0
    """
    import numpy as np
    import torch  # here: what is set before torch starts its threads lies beside this file

    for dtype in (np.float32, np.float64):
        np.finfo(
            dtype
        )  # looked up for the first time inside, numpy below 2 warns that they are zero
    before = torch.tensor(1e-40, dtype=torch.float32, device="cpu").item() == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
