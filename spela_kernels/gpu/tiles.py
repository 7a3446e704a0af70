"""Helpers that the tile rules of every op share. Pure Python: neither torch nor triton."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeVar

from spela_kernels.gpu.architectures import Architecture

__all__ = ["ReductionLoop", "count_tiles", "fitting", "power", "reduction_loop"]


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


class ReductionLoop(NamedTuple):
    """How a product's loop over its reduced axis takes its operands."""

    depth: int  # elements of that axis at a time
    num_stages: int
    prefetch: bool  # the next tiles into registers during the product


def reduction_loop(
    size: int,
    itemsize: int,
    arch: Architecture,
    *,
    fp32: int = 32,
    deepest: int = 64,
    has_registers: bool = True,
) -> ReductionLoop:
    """The loop of a forward product.

    Args:
        size: Of the reduced axis.
        itemsize: Bytes an element of the operands, the wider.
        arch: The GPU.
        fp32: Depth of three-part products.
        deepest: What the op's tile leaves room for.
        has_registers: Whether its tile leaves registers for the next tiles.
    """
    if not arch.matrix_units:
        # An FMA product holds whole rows of its operands in registers: short reductions.
        depth, stages, prefetch = 16, 1, has_registers
    elif itemsize == 4:
        # Three-part products split operands in registers, past which cp.async cannot reach without
        # bank conflicts: the next tiles are fetched into registers during the product instead.
        depth, stages, prefetch = fp32, 1, arch.async_copies and has_registers
    else:
        depth, stages, prefetch = 64, 4 if arch.async_copies else 2, False
    return ReductionLoop(min(depth, power(size, 16, 64), deepest), stages, prefetch)
