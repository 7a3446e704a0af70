"""What all tile rules compute with. Pure Python: neither torch nor triton."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from spela_kernels.architectures import Architecture

__all__ = ["count_tiles", "fitting", "power"]


class _HasSharedBytes(Protocol):
    def shared_bytes(self, problem: Any) -> int: ...


_Config = TypeVar("_Config", bound=_HasSharedBytes)


def count_tiles(size: int, block: int) -> int:
    """Blocks that cover `size`."""
    return -(-size // block)


def power(size: int, low: int, high: int) -> int:
    """The power of two that covers `size`, within [low, high]."""
    return min(max(1 << (size - 1).bit_length(), low), high)


def fitting(configs: list[_Config], problem: Any, arch: Architecture) -> tuple[_Config, ...]:
    """Those configs whose shared memory the GPU has.

    Args:
        configs: Best first.
        problem: What they are for.
        arch: The GPU.

    Raises:
        ValueError: If none fits.
    """
    found = tuple(c for c in configs if c.shared_bytes(problem) <= arch.shared_bytes)
    if not found:
        raise ValueError(f"no tile fits {arch.shared_bytes} bytes of shared memory on {arch.name}")
    return found
