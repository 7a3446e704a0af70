"""Tile sizes, warps and stages of the linear kernels by shape, dtype and architecture. Pure Python.

Each `pick_*` rule takes a problem and a GPU and returns the configs that fit it, best first and at least one:
a launch that runs out of resources takes the next.
Axes: B batch, I in, O out, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from spela_kernels.gpu.architectures import Architecture
from spela_kernels.gpu.tiles import count_tiles, fitting, power, reduction_loop

__all__ = [
    "FinaliseConfig",
    "ForwardConfig",
    "Problem",
    "UpdateConfig",
    "finalises_twice",
    "pick_finalise",
    "pick_forward",
    "pick_update",
]


@dataclass(frozen=True)
class Problem:
    """A layer step as the rules see it.

    Attributes:
        batch, inputs, outputs, classes: B, I, O, C.
        itemsize, weight_itemsize: Bytes an element of x and of W.
        all_classes: Whether cosines to all classes are needed.
    """

    batch: int
    inputs: int
    outputs: int
    classes: int
    itemsize: int
    weight_itemsize: int
    all_classes: bool = False


@dataclass(frozen=True)
class ForwardConfig:
    """Tile (block_b, block_o) of y, reduced block_i at a time in `parts`; block_c classes at a time."""

    block_b: int
    block_o: int
    block_i: int
    block_c: int
    num_warps: int
    num_stages: int
    precision: str
    prefetch: bool = False
    parts: int = 1

    def programs(self, problem: Problem) -> int:
        """Programs of the launch."""
        return count_tiles(problem.batch, self.block_b) * count_tiles(problem.outputs, self.block_o)

    def shared_bytes(self, problem: Problem) -> int:
        """Upper bound: the pipelined x and W tiles, the parts' sums, or the epilogue's y and V tiles."""
        # A three-part fp32 product stages both halves of its operands.
        copies = self.num_stages + (self.precision == "tf32x3" and problem.itemsize == 4)
        row_bytes = self.block_b * problem.itemsize + self.block_o * problem.weight_itemsize
        loop = copies * row_bytes * self.block_i
        epilogue = (self.block_b + 2 * self.block_c) * self.block_o + self.block_b * self.block_c
        parts = self.parts * self.block_b * self.block_o
        return max(loop, 4 * parts, 4 * epilogue) + 1024


@dataclass(frozen=True)
class FinaliseConfig:
    """block_b rows a program, and block_o columns of dL/dz if that is stored.

    block_c classes at a time, and of their sums those of block_t column tiles.
    """

    block_b: int
    block_o: int
    block_c: int
    block_t: int
    num_warps: int
    precision: str
    stores_dz: bool
    num_stages: int = 1

    def programs(self, problem: Problem) -> int:
        """Programs of the launch."""
        tiles_o = count_tiles(problem.outputs, self.block_o) if self.stores_dz else 1
        return count_tiles(problem.batch, self.block_b) * tiles_o

    def shared_bytes(self, problem: Problem) -> int:
        """Upper bound: the q and V tiles of q V and the reductions' scratch."""
        tiles = self.block_b * self.block_c + self.block_c * self.block_o
        return 4 * (2 * tiles + self.block_b * self.block_o) + 1024


@dataclass(frozen=True)
class UpdateConfig:
    """Tile (block_o, block_i) of W, reduced block_b rows at a time."""

    block_o: int
    block_i: int
    block_b: int
    num_warps: int
    num_stages: int
    precision: str

    def programs(self, problem: Problem) -> int:
        """Programs of the launch."""
        return count_tiles(problem.outputs, self.block_o) * count_tiles(
            problem.inputs, self.block_i
        )

    def shared_bytes(self, problem: Problem) -> int:
        """Upper bound: the pipelined y, V and x tiles and the dz tile, or the epilogue's tile."""
        loop = self.num_stages * self.block_b * (2 * self.block_o + self.block_i) * 4
        dz = self.block_b * self.block_o * 4
        return max(loop + dz, 4 * self.block_o * (self.block_i + 8)) + 1024


def _busy(
    sizes: tuple[int, int], longest: tuple[int, int], limit: int, wanted: float, axis: int | None
) -> tuple[int, int]:
    """The largest tile of two axes that gives `wanted` programs; of equal ones the longest along `axis`.

    Without `axis` the squarest. If none gives so many, the smallest. Sides are powers of 2 from 16 to
    `longest`, no longer than the axes' `sizes` need; a tile has at most `limit` elements.
    """

    def along(tile: tuple[int, int]) -> int:
        return min(tile) if axis is None else tile[axis]

    most = [power(size, 16, side) for size, side in zip(sizes, longest, strict=True)]
    tiles = [
        (first, second)
        for first in (128, 64, 32, 16)
        for second in (128, 64, 32, 16)
        if first * second <= limit and first <= most[0] and second <= most[1]
    ]
    full = [
        (first, second)
        for first, second in tiles
        if count_tiles(sizes[0], first) * count_tiles(sizes[1], second) >= wanted
    ]
    if full:
        return max(full, key=lambda tile: (tile[0] * tile[1], along(tile)))
    return min(tiles, key=lambda tile: (tile[0] * tile[1], -along(tile)))


@lru_cache(maxsize=1024)
def pick_forward(problem: Problem, arch: Architecture) -> tuple[ForwardConfig, ...]:
    """Choices for the forward kernel.

    Example:
        >>> from spela_kernels.gpu.architectures import find_architecture
        >>> a100 = find_architecture("sm_80")
        >>> pick_forward(Problem(50, 784, 1024, 10, itemsize=4, weight_itemsize=4), a100)[0].block_o
        16
    """
    wide = problem.itemsize == 4 or not arch.matrix_units
    # Large tiles read x and W less often, but come second to work for most multiprocessors; of fp32 ones,
    # which cannot be cut into parts, several waves are needed to hide their waits.
    sizes, limit = (problem.batch, problem.outputs), 64 * 32 if wide else 128 * 64
    waves = count_tiles(problem.batch, 64) * count_tiles(problem.outputs, 32) / arch.multiprocessors
    if wide and waves < 3:
        limit = 32 * 32
    block_b, block_o = _busy(
        sizes,
        (64, 64) if wide else (128, 128),
        limit,
        # Square tiles read least; an all-class objective has C partial sums a row, of which wide tiles leave
        # fewer, and so do few programs.
        (0.4 if problem.all_classes else 0.75) * arch.multiprocessors,
        axis=1 if problem.all_classes else None,
    )
    block_c = power(problem.classes, 16, 32 if arch.shared_bytes > 65_536 else 16)
    elements = block_b * block_o
    loop = reduction_loop(
        problem.inputs, problem.itemsize, arch, fp32=64 if elements <= 1024 else 32
    )
    depth, stages, parts = loop.depth, loop.num_stages, 1
    warps = 8 if elements > 64 * 64 else 4
    # Rows that no wide load can take need an address for every element, and meet bank conflicts in parts.
    if arch.matrix_units and elements <= 1024 and problem.inputs > 64 and problem.inputs % 8 == 0:
        # Few waits for memory, each for many bytes: they are most of a small batch's time. A warp's operands,
        # of which a three-part product has two halves, share its registers with the next ones.
        warps = parts = 8
        depth, stages = parts * (32 if elements <= 512 else 16), min(stages, 3)
    precision = arch.fp32_dot
    chosen = ForwardConfig(
        block_b, block_o, depth, block_c, warps, stages, precision, loop.prefetch, parts
    )
    # 16-bit rows beside float32 weights need more shared memory than some GPUs have for all stages.
    while chosen.num_stages > 1 and chosen.shared_bytes(problem) > arch.shared_bytes:
        chosen = replace(chosen, num_stages=chosen.num_stages - 1)
    configs = [
        chosen,
        ForwardConfig(min(block_b, 32), min(block_o, 32), min(loop.depth, 32), 16, 4, 1, precision),
        ForwardConfig(16, 16, 16, 16, 4, 1, precision),
    ]
    return fitting(configs, problem, arch)


@lru_cache(maxsize=1024)
def pick_finalise(
    problem: Problem, arch: Architecture, stores_dz: bool
) -> tuple[FinaliseConfig, ...]:
    """Choices for the finalise kernel; `stores_dz`: whether it leaves dL/dz."""
    block_b = 16 if problem.all_classes else power(problem.batch, 16, 32)
    block_c = power(problem.classes, 16, 32 if arch.matrix_units else 16)
    # With dL/dz to write every program sums its rows' partials again: wide tiles, few programs. But y, z
    # and V have 64-bit addresses for each element, and a thread registers for 16 of them.
    block_o = power(problem.outputs, 16, 16 * 128 // block_b if arch.matrix_units else 32)
    block_t = 4096 // (block_b * block_c) if problem.all_classes else 64
    configs = [
        FinaliseConfig(block_b, block_o, block_c, block_t, 4, arch.fp32_dot, stores_dz),
        FinaliseConfig(16, 16, 16, block_t, 4, arch.fp32_dot, stores_dz),
    ]
    return fitting(configs, problem, arch)


def finalises_twice(problem: Problem, arch: Architecture, partials: int) -> bool:
    """Whether dL/dz of an all-class objective gets a launch of its own, which reads cosines instead of sums.

    In one launch every column tile of dL/dz adds up the sums of all column tiles of y, once for the softmax
    and once more for q; in two the sums are read once, and cosines in their place. The bytes that this saves
    have to be worth a launch and its waits, one a block of classes: the cost model's time of a step is on the
    average 0.7 % above that of the better choice (6 GPUs, B 50 to 4,096, O 128 to 4,096, C 10 to 1,000).

    Args:
        problem: Shapes; an objective of the label's cosine has few sums, and one launch.
        arch: The GPU.
        partials: T, column tiles of the forward kernel.

    Example:
        >>> from spela_kernels.gpu.architectures import find_architecture
        >>> h100 = find_architecture("sm_90")
        >>> few, many = (Problem(batch, 2048, 2048, 100, 4, 4, all_classes=True) for batch in (50, 512))
        >>> finalises_twice(few, h100, partials=32), finalises_twice(many, h100, partials=32)
        (False, True)
    """
    tiles = count_tiles(problem.outputs, pick_finalise(problem, arch, True)[0].block_o)
    visits = 2 * tiles * partials - (partials + 2 * tiles)  # of the rows' class sums
    saved = visits * problem.batch * problem.classes * 4
    return problem.all_classes and saved > arch.multiprocessors * 1024 * (128 + problem.classes)


@lru_cache(maxsize=1024)
def pick_update(problem: Problem, arch: Architecture) -> tuple[UpdateConfig, ...]:
    """Choices for the gradient/update kernel.

    Example:
        >>> from spela_kernels.gpu.architectures import find_architecture
        >>> h100 = find_architecture("sm_90")
        >>> problem = Problem(50, 784, 1024, 10, itemsize=4, weight_itemsize=4)
        >>> pick_update(problem, h100)[0].programs(problem) > 2 * h100.multiprocessors
        True
    """
    wide = problem.itemsize == 4
    # Large tiles reuse x and dz over long batches; with Adam's state they cost most of the registers, and
    # more than AMD's compiler has.
    limit = 64 * 64 if not wide and arch.async_copies and problem.batch > 256 else 32 * 64
    block_o, block_i = _busy(
        (problem.outputs, problem.inputs),
        (32, 64) if wide else (64, 128),
        limit,
        1.5 * arch.multiprocessors,
        axis=1,
    )
    block_b = power(problem.batch, 16, 32) if arch.matrix_units else 16
    # Copies ahead pay once the batch has several steps, and would cost bank conflicts where dz passes
    # through fp32 shared memory.
    ahead = (
        arch.async_copies and not wide and not problem.all_classes and problem.batch > 4 * block_b
    )
    # Adam on fp32 masters leaves a thread registers for 16 elements of the tile, not for 32.
    warps = 8 if block_o * block_i > 16 * 128 else 4
    precision = arch.fp32_dot
    configs = [
        UpdateConfig(block_o, block_i, block_b, warps, 3 if ahead else 1, precision),
        UpdateConfig(min(block_o, 32), min(block_i, 32), 16, 4, 1, precision),
        UpdateConfig(16, 16, 16, 4, 1, precision),
    ]
    return fitting(configs, problem, arch)
