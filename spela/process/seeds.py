"""torch's own generators under a seed for a while, and as they were after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, draws on the CPU and on one device are of a seed; no other device's generator is touched.

    `torch.manual_seed` would seed those of all GPUs, other people's work on them included.

    Args:
        seed: Of both generators.
        device: Where else than on the CPU there may be draws.

    Example:
        >>> import torch
        >>> with seeded(5, torch.device("cpu")):
        ...     first = torch.rand(1)
        >>> with seeded(5, torch.device("cpu")):
        ...     bool(torch.rand(1) == first)
        True
    """
    import torch  # `spela.process` is imported before torch, whose threads it calms

    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
