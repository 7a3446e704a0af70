"""Tile sizes, warps and stages of the projection kernels by shape, dtype and architecture. Pure Python.

Each `pick_*` rule takes a problem and a GPU and returns the configs that fit it, best first and at least one:
a launch that runs out of resources takes the next.
Axes: B batch, K kernels, D pooled map size, E symmetric dimension, G groups, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from spela_kernels.gpu.architectures import Architecture
from spela_kernels.gpu.tiles import count_tiles, fitting, power, reduction_loop

__all__ = [
    "LARGEST_CLASSES",
    "LARGEST_DIM",
    "ClassesConfig",
    "ForwardConfig",
    "GradientConfig",
    "Problem",
    "UpdateConfig",
    "pick_classes",
    "pick_forward",
    "pick_gradient",
    "pick_update",
]

# A row of p is held whole, for its norm, and so is one of class scores, in Triton's largest block; longer
# ones are the reference's.
LARGEST_DIM = 512
LARGEST_CLASSES = 1 << 20


@dataclass(frozen=True)
class Problem:
    """A projection step as the rules see it.

    Attributes:
        batch, kernels, size, dim, groups, classes: B, K, D, E, G, C.
        itemsize: Bytes an element of z and P, the larger.
    """

    batch: int
    kernels: int
    size: int
    dim: int
    groups: int
    classes: int
    itemsize: int


@dataclass(frozen=True)
class ForwardConfig:
    """Tile (block_b, block_e) of p, reduced block_d at a time; block_g groups at a time (1: no product)."""

    block_b: int
    block_d: int
    block_e: int
    block_g: int
    num_warps: int
    num_stages: int
    precision: str
    prefetch: bool = False

    def programs(self, problem: Problem) -> int:
        """Programs of the launch."""
        return problem.kernels * count_tiles(problem.batch, self.block_b)

    def shared_bytes(self, problem: Problem) -> int:
        """Upper bound: the pipelined z and P tiles, or the epilogue's p and U tiles if larger."""
        # A three-part fp32 product stages both halves of its operands.
        copies = self.num_stages + (self.precision == "tf32x3" and problem.itemsize == 4)
        loop = copies * (self.block_b + self.block_e) * self.block_d
        halves = 2 if problem.itemsize == 4 and self.precision == "tf32x3" else 1
        epilogue = halves * (self.block_b + self.block_g) * self.block_e
        return problem.itemsize * max(loop, epilogue) + 2048


@dataclass(frozen=True)
class ClassesConfig:
    """block_k kernels at a time, all classes."""

    block_k: int
    block_c: int
    num_warps: int
    num_stages: int = 1

    def programs(self, problem: Problem) -> int:
        """Programs of the launch: one a sample."""
        return problem.batch

    def shared_bytes(self, problem: Problem) -> int:
        """Upper bound: the reductions' scratch."""
        return 8 * 32 * self.num_warps * max(self.block_c // 32, 1) + 1024


@dataclass(frozen=True)
class GradientConfig:
    """block_b rows of dp, block_c classes at a time."""

    block_b: int
    block_e: int
    block_c: int
    num_warps: int
    precision: str
    num_stages: int = 1

    def programs(self, problem: Problem) -> int:
        """Programs of the launch."""
        return problem.kernels * count_tiles(problem.batch, self.block_b)

    def shared_bytes(self, problem: Problem) -> int:
        """Upper bound: the q and U tiles of q U, and the reductions' scratch."""
        halves = 2 if self.precision == "tf32x3" else 1
        return 4 * halves * (self.block_b + self.block_e) * self.block_c + 4096


@dataclass(frozen=True)
class UpdateConfig:
    """block_d rows of P, block_e columns and block_b samples at a time."""

    block_b: int
    block_d: int
    block_e: int
    num_warps: int
    num_stages: int
    precision: str

    def programs(self, problem: Problem) -> int:
        """Programs of the launch."""
        return problem.kernels * count_tiles(problem.size, self.block_d)

    def shared_bytes(self, problem: Problem) -> int:
        """Upper bound: the tiles of the larger product, both halves of them."""
        copies = max(self.num_stages, 2) * problem.itemsize
        dz = (self.block_b + self.block_d) * self.block_e
        dprojection = self.block_b * (self.block_d + self.block_e)
        return copies * max(dz, dprojection) + 1024


def _rows(problem: Problem, arch: Architecture, most: int) -> int:
    """The most rows of a batch tile that still leave every multiprocessor a program or two."""
    for rows in (64, 32):
        programs = problem.kernels * count_tiles(problem.batch, rows)
        if (
            rows <= min(most, power(problem.batch, 16, 64))
            and programs >= 1.5 * arch.multiprocessors
        ):
            return rows
    return 16


@lru_cache(maxsize=1024)
def pick_forward(problem: Problem, arch: Architecture) -> tuple[ForwardConfig, ...]:
    """Choices for the forward kernel.

    Example:
        >>> from spela_kernels.gpu.architectures import find_architecture
        >>> a100 = find_architecture("sm_80")
        >>> pick_forward(Problem(64, 128, 900, 100, 9, 10, itemsize=4), a100)[0].block_e
        128
    """
    wide = problem.itemsize == 4 or not arch.matrix_units
    block_e = power(problem.dim, 16, LARGEST_DIM)
    block_b = _rows(problem, arch, most=max((4096 if wide else 8192) // block_e, 16))
    # p U^T is reduced along all of E at once, for which longer rows have no registers, nor have
    # three-part products for more than 16 groups.
    block_g = 1
    if arch.matrix_units and block_e <= 128:
        block_g = power(problem.groups, 16, 16 if problem.itemsize == 4 else 32)
    warps = 8 if block_b * block_e > 2048 else 4
    loop = reduction_loop(
        problem.size,
        problem.itemsize,
        arch,
        deepest=max(8192 // block_e, 16),
        has_registers=block_e <= 256 if arch.matrix_units else block_b * block_e <= 4096,
    )
    precision = arch.fp32_dot
    configs = [
        ForwardConfig(
            block_b, loop.depth, block_e, block_g, warps, loop.num_stages, precision, loop.prefetch
        ),
        ForwardConfig(16, min(loop.depth, 32), block_e, min(block_g, 16), warps, 1, precision),
        ForwardConfig(16, 16, block_e, min(block_g, 16), warps, 1, precision),
    ]
    return fitting(configs, problem, arch)


@lru_cache(maxsize=1024)
def pick_classes(problem: Problem, arch: Architecture) -> tuple[ClassesConfig, ...]:
    """The choice for the kernel of class scores: a program per sample."""
    block_c = power(problem.classes, 16, LARGEST_CLASSES)
    block_k = power(problem.kernels, 1, max(2048 // block_c, 1))
    return (ClassesConfig(block_k, block_c, 8 if block_c > 2048 else 4),)


@lru_cache(maxsize=1024)
def pick_gradient(problem: Problem, arch: Architecture) -> tuple[GradientConfig, ...]:
    """Choices for the kernel of dp."""
    block_e = power(problem.dim, 16, LARGEST_DIM)
    block_b = _rows(problem, arch, most=max(4096 // block_e, 16))
    warps = 8 if block_b * block_e > 2048 else 4
    block_c = power(problem.classes, 16, 32 if arch.matrix_units and block_e <= 256 else 16)
    configs = [
        GradientConfig(block_b, block_e, block_c, warps, arch.fp32_dot),
        GradientConfig(16, block_e, 16, warps, arch.fp32_dot),
    ]
    return fitting(configs, problem, arch)


@lru_cache(maxsize=1024)
def pick_update(problem: Problem, arch: Architecture) -> tuple[UpdateConfig, ...]:
    """Choices for the kernel of dz and dP.

    Example:
        >>> from spela_kernels.gpu.architectures import find_architecture
        >>> h100 = find_architecture("sm_90")
        >>> problem = Problem(64, 128, 900, 100, 9, 10, itemsize=4)
        >>> pick_update(problem, h100)[0].programs(problem) > 2 * h100.multiprocessors
        True
    """
    # Two products, Adam's state and its addresses share the registers.
    if arch.matrix_units:
        # Rows that no wide load can take need an address for every element: narrower tiles.
        widest = 32 if problem.itemsize == 4 and problem.dim % 4 else 64
        block_b = power(problem.batch, 16, widest if arch.async_copies else 32)
        block_e = power(problem.dim, 16, widest)
        block_d = power(problem.size, 16, 32)
    else:
        block_b, block_e, block_d = 16, 16, power(problem.size, 16, 64)
    warps = 8 if block_d * block_e > 1024 else 4
    precision = arch.fp32_dot
    configs = [
        UpdateConfig(block_b, block_d, block_e, warps, 1, precision),
        UpdateConfig(16, 16, min(block_e, 32), 4, 1, precision),
        UpdateConfig(16, 16, 16, 4, 1, precision),
    ]
    return fitting(configs, problem, arch)
