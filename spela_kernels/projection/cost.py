"""What a grouped projection's step costs: bytes and flops of each launch, from the tile rules. Pure Python.

`spela_kernels.cost.traffic` says what such a model knows and what not.

Axes: B batch, K kernels, D pooled map size, E symmetric dimension, G groups, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from spela_kernels.cost.traffic import (
    LaunchCost,
    StepCost,
    Traffic,
    covered,
    fp32_product,
    loop_waits,
    product,
    read,
    write,
)
from spela_kernels.gpu.architectures import Architecture
from spela_kernels.gpu.tiles import count_tiles
from spela_kernels.projection.configs import (
    ClassesConfig,
    ForwardConfig,
    GradientConfig,
    Problem,
    UpdateConfig,
    pick_classes,
    pick_forward,
    pick_gradient,
    pick_update,
)

__all__ = ["Step", "step_cost"]

_FP32, _INDEX = 4, 8  # bytes of row results, and of an int64 label or group


@dataclass(frozen=True)
class Step:
    """A fused step as the model sees it.

    Attributes:
        problem: Shapes and the larger element size, which is that of P.
        all_classes: Whether the objective compares all classes: four launches, else two.
        moments: Optimizer buffers: 0 SGD, 1 SGD with momentum, 2 Adam.
        mixed: Whether z has 16 bits under a wider P.
        state_itemsize: Bytes an element of the optimizer buffers.
    """

    problem: Problem
    all_classes: bool = False
    moments: int = 0
    mixed: bool = False
    state_itemsize: int = _FP32

    @property
    def compulsory_bytes(self) -> int:
        """What any step must move: each tensor once, and each result once more where it is read.

        z, labels, groups and vectors are read; dz is written; for all-class objectives p is written and
        read, since no gradient exists before every kernel's cosines (for the others a kernel is on its
        own); P and its optimizer buffers are read and written; the loss.
        """
        p = self.problem
        saved = 2 * self.rows * p.dim if self.all_classes else 0
        activations = (2 * self.rows * p.size + saved) * self.itemsize
        state = 2 * self.elements * (p.itemsize + self.moments * self.state_itemsize)
        indices = (p.batch + p.kernels * self.labels) * _INDEX
        return activations + state + self.vector_bytes + indices + _FP32

    @property
    def itemsize(self) -> int:
        """Bytes an element of z, p, dp and dz."""
        return 2 if self.mixed else self.problem.itemsize

    @property
    def rows(self) -> int:
        """Of p: one a sample and kernel."""
        return self.problem.batch * self.problem.kernels

    @property
    def elements(self) -> int:
        """Of P."""
        return self.problem.kernels * self.problem.size * self.problem.dim

    @property
    def labels(self) -> int:
        """Classes that are looked up: all, or at most one a sample."""
        p = self.problem
        return p.classes if self.all_classes else min(p.batch, p.classes)

    @property
    def vector_bytes(self) -> int:
        """Of the vectors that are read: at most one a class that is looked up."""
        p = self.problem
        return p.kernels * min(p.groups, self.labels) * p.dim * p.itemsize


def _forward(step: Step, config: ForwardConfig, arch: Architecture) -> LaunchCost:
    p, s, w = step.problem, step.itemsize, step.problem.itemsize
    tiles_b, rows = count_tiles(p.batch, config.block_b), min(config.block_b, p.batch)
    programs = config.programs(p)
    # Row tiles run fastest: P_k and its vectors come round with the next program, labels with the
    # next kernel.
    vectors = p.groups * p.dim * w
    shared = p.size * p.dim * w + vectors + p.classes * _INDEX
    row = p.size * s + 2 * p.dim * s + (p.groups + 1) * _FP32 + _INDEX
    program, kernel = shared + rows * row, shared + p.batch * row
    traffic = [
        read("z", step.rows * p.size * s),
        read("projection", step.elements * w, tiles_b, program),
    ]
    depth = covered(p.size, config.block_d)
    if step.all_classes:
        traffic += [
            read("vectors", p.kernels * vectors, tiles_b, program),
            write("p", step.rows * p.dim * s),
            write("norm", step.rows * _FP32),
            write("cosine", step.rows * p.groups * _FP32),
        ]
        depth += covered(p.groups, config.block_g) if config.block_g > 1 else 0
    else:
        traffic += [
            Traffic("vectors", step.vector_bytes, step.rows * p.dim * w, program),
            Traffic("groups", p.kernels * step.labels * _INDEX, step.rows * _INDEX, program),
            read("target", p.batch * _INDEX, p.kernels, kernel),
            write("shares", programs * _FP32),
            write("dp", step.rows * p.dim * s),
        ]
    flops = 2 * programs * config.block_b * config.block_e * depth
    # Label, group, vector; or the vectors of all groups.
    waits = count_tiles(p.groups, config.block_g) if step.all_classes else 3
    waits += loop_waits(count_tiles(p.size, config.block_d), config.num_stages)
    return LaunchCost("forward", programs, flops, product(s, arch), tuple(traffic), waits)


def _classes(step: Step, config: ClassesConfig) -> LaunchCost:
    p = step.problem
    row = p.kernels * (p.classes * _INDEX + p.groups * _FP32) + p.classes * _FP32
    block = min(config.block_k, p.kernels) * (p.classes * _INDEX + p.groups * _FP32)
    touched = step.rows * min(p.groups, p.classes) * _FP32
    traffic = (
        read("groups", p.kernels * p.classes * _INDEX, p.batch, row),
        Traffic("cosine", touched, step.rows * p.classes * _FP32, block),
        read("target", p.batch * _INDEX),
        write("shares", p.batch * _FP32),
        write("q", p.batch * p.classes * _FP32),
    )
    # The label, and for each block of kernels groups and then cosines.
    waits = 1 + loop_waits(count_tiles(p.kernels, config.block_k), config.num_stages, chain=2)
    return LaunchCost("classes", p.batch, 0, "fp32", traffic, waits)


def _gradient(step: Step, config: GradientConfig, arch: Architecture) -> LaunchCost:
    p, s, w = step.problem, step.itemsize, step.problem.itemsize
    tiles_b, rows = count_tiles(p.batch, config.block_b), min(config.block_b, p.batch)
    programs = config.programs(p)
    # Row tiles run fastest: a kernel's vectors come round with the next program, q with the next kernel.
    shared = p.classes * _INDEX + min(p.groups, p.classes) * p.dim * w
    row = 2 * p.dim * s + (p.classes + 1) * _FP32
    program, kernel = shared + rows * row, shared + p.batch * row
    looked_up = tiles_b * p.kernels * p.classes * p.dim * w
    traffic = (
        read("p", step.rows * p.dim * s),
        read("norm", step.rows * _FP32),
        read("q", p.batch * p.classes * _FP32, p.kernels, kernel),
        read("groups", p.kernels * p.classes * _INDEX, tiles_b, program),
        Traffic("vectors", step.vector_bytes, looked_up, program),
        write("dp", step.rows * p.dim * s),
    )
    flops = 2 * programs * config.block_b * config.block_e * covered(p.classes, config.block_c)
    # p and its norm, and for each block of classes groups and then vectors.
    waits = 1 + loop_waits(count_tiles(p.classes, config.block_c), config.num_stages, chain=2)
    # q U is multiplied in fp32 whatever the element size.
    return LaunchCost("gradient", programs, flops, fp32_product(arch), traffic, waits)


def _update(step: Step, config: UpdateConfig, shares: int, arch: Architecture) -> LaunchCost:
    p, s, w = step.problem, step.itemsize, step.problem.itemsize
    tiles_b, tiles_d = count_tiles(p.batch, config.block_b), count_tiles(p.size, config.block_d)
    programs, columns = config.programs(p), min(config.block_d, p.size)
    # Tiles along D run fastest: dp's rows come round with the next program.
    state = w + step.moments * step.state_itemsize
    program = columns * (p.dim * state + 2 * p.batch * s) + p.batch * p.dim * s + 3 * _FP32
    traffic = [
        # For dz and again for dP.
        read("dp", step.rows * p.dim * s, 2 * tiles_d, program),
        read("z", step.rows * p.size * s, count_tiles(p.dim, config.block_e), program),
        # For the dz of each row tile and once more for the step.
        read("projection", step.elements * w, tiles_b + 1, program),
        write("projection", step.elements * w),
        write("dz", step.rows * p.size * s),
        read("shares", shares * _FP32),
        write("loss", _FP32),
        read("lr", _FP32, programs, program),
    ]
    if step.moments == 2:
        traffic.append(read("step", _FP32, programs, program))
    for moment in ("first", "second")[: step.moments]:
        bytes_ = step.elements * step.state_itemsize
        traffic += [read(moment, bytes_), write(moment, bytes_)]
    dz = covered(p.batch, config.block_b) * config.block_d * covered(p.dim, config.block_e)
    flops = 2 * 2 * programs * dz
    # Operands of both products, and before each step the parameters.
    tiles_e = count_tiles(p.dim, config.block_e)
    waits = 2 * loop_waits(tiles_b * tiles_e, config.num_stages) + tiles_e
    return LaunchCost("update", programs, flops, product(s, arch), tuple(traffic), waits)


def step_cost(step: Step, arch: Architecture) -> StepCost:
    """The two or four launches of a step with the tiles that the rules choose first.

    Args:
        step: Shapes, dtype, kind of objective and optimizer.
        arch: The GPU the tiles are chosen for.

    Returns:
        Bytes and flops of each launch.

    Example:
        >>> from spela_kernels.gpu.architectures import find_architecture
        >>> h100 = find_architecture("sm_90")
        >>> cost = step_cost(Step(Problem(64, 128, 900, 100, 9, 10, itemsize=4)), h100)
        >>> [(launch.name, launch.programs) for launch in cost.launches]
        [('forward', 256), ('update', 3712)]
    """
    problem = step.problem
    forward = _forward(step, pick_forward(problem, arch)[0], arch)
    config = pick_update(problem, arch)[0]
    if not step.all_classes:
        return StepCost((forward, _update(step, config, forward.programs, arch)))
    classes = _classes(step, pick_classes(problem, arch)[0])
    gradient = _gradient(step, pick_gradient(problem, arch)[0], arch)
    return StepCost((forward, classes, gradient, _update(step, config, classes.programs, arch)))
