"""What a linear layer's step costs: bytes and flops of each launch, from the tile rules. Pure Python.

`spela_kernels.cost.traffic` says what such a model knows and what not.

Axes: B batch, I in, O out, C classes, T column tiles of the forward kernel.
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
from spela_kernels.linear.configs import (
    FinaliseConfig,
    ForwardConfig,
    Problem,
    UpdateConfig,
    finalises_twice,
    pick_finalise,
    pick_forward,
    pick_update,
)

__all__ = ["Step", "step_cost"]

_FP32, _LABEL = 4, 8  # bytes of partial sums and row results, and of an int64 label


@dataclass(frozen=True)
class Step:
    """A fused step as the model sees it.

    Attributes:
        problem: Shapes, element sizes and kind of objective.
        moments: Optimizer buffers a parameter: 0 SGD, 1 SGD with momentum, 2 Adam.
        bias: Whether the layer has one.
        keeps_input: Whether phi' needs z (gelu), which is then stored beside y.
        state_itemsize: Bytes an element of the optimizer buffers.
    """

    problem: Problem
    moments: int = 0
    bias: bool = True
    keeps_input: bool = False
    state_itemsize: int = _FP32

    @property
    def compulsory_bytes(self) -> int:
        """What any step must move: each tensor once, and each result once more where it is read.

        x, labels and class vectors are read; y (and z) written and read, since no gradient exists
        before the row norms of all of y; parameters and optimizer buffers read and written; the loss.
        """
        p = self.problem
        parameters = p.outputs * (p.inputs + self.bias)
        outputs = p.batch * p.outputs * (1 + self.keeps_input)
        rows = (p.batch * p.inputs + 2 * outputs) * p.itemsize + p.batch * _LABEL
        vectors = self.vector_rows * p.outputs * p.weight_itemsize
        state = self.moments * self.state_itemsize
        return rows + vectors + 2 * parameters * (p.weight_itemsize + state) + _FP32

    @property
    def vector_rows(self) -> int:
        """Class vectors that are read: all, or at most one a sample."""
        p = self.problem
        return p.classes if p.all_classes else min(p.batch, p.classes)


def _vectors(step: Step, visits: int, window: int) -> Traffic:
    """All class vectors, or for each sample its own, `visits` times."""
    p = step.problem
    row = p.outputs * p.weight_itemsize
    size, asked = step.vector_rows * row, (p.classes if p.all_classes else p.batch) * row
    return Traffic("vectors", size, asked * visits, window)


def _class_columns(step: Step) -> int:
    """Partial sums a row and column tile: one, or one a class padded to whole sectors."""
    return covered(step.problem.classes, 16) if step.problem.all_classes else 1


def _forward(step: Step, config: ForwardConfig, arch: Architecture) -> LaunchCost:
    p, s, w = step.problem, step.problem.itemsize, step.problem.weight_itemsize
    tiles_b, tiles_o = count_tiles(p.batch, config.block_b), count_tiles(p.outputs, config.block_o)
    rows, columns = min(config.block_b, p.batch), min(config.block_o, p.outputs)
    sums = (1 + _class_columns(step)) * _FP32
    vectors = step.vector_rows * columns * w
    outputs = columns * (1 + step.keeps_input) * s
    # Row tiles run fastest: W's rows come round with the next program, x with the next column tile.
    program = (rows * s + columns * w) * p.inputs + vectors + rows * (outputs + sums + _LABEL)
    column = (p.batch * s + columns * w) * p.inputs + vectors + p.batch * (outputs + sums + _LABEL)
    traffic = [
        read("x", p.batch * p.inputs * s, tiles_o, column),
        read("weight", p.outputs * p.inputs * w, tiles_b, program),
        _vectors(step, tiles_b if p.all_classes else 1, program),
        write("y", p.batch * p.outputs * s),
        write("squares", tiles_o * p.batch * _FP32),
        write("dots", tiles_o * p.batch * _class_columns(step) * _FP32),
    ]
    if not p.all_classes:
        traffic.append(read("target", p.batch * _LABEL, tiles_o, column))
    if step.bias:
        traffic.append(read("bias", p.outputs * w, tiles_b, program))
    if step.keeps_input:
        traffic.append(write("z", p.batch * p.outputs * s))
    depth = covered(p.inputs, config.block_i)
    if p.all_classes:
        depth += covered(p.classes, config.block_c)
    programs = config.programs(p)
    flops = 2 * programs * config.block_b * config.block_o * depth
    # Bias and label come during the loop, then the label's vector or those of all classes.
    waits = count_tiles(p.classes, config.block_c) if p.all_classes else 1
    waits += loop_waits(count_tiles(p.inputs, config.block_i), config.num_stages)
    return LaunchCost("forward", programs, flops, product(s, arch), tuple(traffic), waits)


def _finalise(
    step: Step, config: FinaliseConfig, arch: Architecture, partials: int, saved: bool = False
) -> LaunchCost:
    """From partial sums; `saved`, as the second of two: from the norms and cosines of the first."""
    p, s, w = step.problem, step.problem.itemsize, step.problem.weight_itemsize
    stores_dz = config.stores_dz
    programs = config.programs(p)
    tiles_b = count_tiles(p.batch, config.block_b)
    tiles_o = programs // tiles_b
    columns = p.classes if saved else _class_columns(step)
    rows = min(config.block_b, p.batch)
    results = 0 if saved else (2 + (p.classes if p.all_classes else 1)) * _FP32
    sums = rows * (partials * (1 + columns) * _FP32 + _LABEL + results)
    # Column tiles run fastest: partial sums and labels come round with the next program.
    output = rows * (2 + step.keeps_input) * s + p.classes * w
    program = sums + (output * min(config.block_o, p.outputs) if stores_dz else 0)
    block = sums + output * p.outputs
    # With dL/dz to write, a program adds its rows' partials up twice: for the softmax, then for q.
    visits = tiles_o * (2 if stores_dz else 1)
    lengths, products = ("norm", "cosine") if saved else ("squares", "dots")
    traffic = [
        read(lengths, partials * p.batch * _FP32, tiles_o, program),
        read(products, partials * p.batch * columns * _FP32, visits, program),
        read("target", p.batch * _LABEL, tiles_o, program),
    ]
    if not saved:
        traffic += [
            write("norm", p.batch * _FP32),
            write("cosine", p.batch * (p.classes if p.all_classes else 1) * _FP32),
            write("losses", p.batch * _FP32),
        ]
    flops = 0
    if stores_dz:
        traffic += [
            _vectors(step, tiles_b, block),
            read("y", p.batch * p.outputs * s),
            write("dz", p.batch * p.outputs * s),
        ]
        if step.keeps_input:
            traffic.append(read("z", p.batch * p.outputs * s))
        flops = 2 * config.block_b * config.block_o * covered(p.classes, config.block_c) * programs
    # Squares, the label, dots of each block of classes; with dL/dz the dots again with V, then y.
    blocks = count_tiles(p.classes, config.block_c) if p.all_classes else 1
    blocks_t = count_tiles(partials, config.block_t)
    waits = blocks_t + 1 + blocks * blocks_t
    if stores_dz:
        waits += blocks * (blocks_t + 1) + 1
    # q V is multiplied in fp32 whatever the element size.
    return LaunchCost("finalise", programs, flops, fp32_product(arch), tuple(traffic), waits)


def _update(step: Step, config: UpdateConfig, arch: Architecture) -> LaunchCost:
    p, s, w = step.problem, step.problem.itemsize, step.problem.weight_itemsize
    tiles_o, tiles_i = count_tiles(p.outputs, config.block_o), count_tiles(p.inputs, config.block_i)
    programs = config.programs(p)
    columns, inputs = min(config.block_o, p.outputs), min(config.block_i, p.inputs)
    shared = (p.batch * (1 + step.keeps_input) * s + step.vector_rows * w) * columns
    shared += p.batch * (_LABEL + 3 * _FP32)
    weights = columns * (w + step.moments * step.state_itemsize)  # of a tile, each of the inputs
    # Tiles along I run fastest: y's columns come round with the next program, x with the next row.
    program = shared + inputs * (p.batch * s + weights)
    row = shared + p.inputs * (p.batch * s + weights)
    traffic = [
        read("x", p.batch * p.inputs * s, tiles_o, row),
        read("losses", p.batch * _FP32),
        write("loss", _FP32),
        read("lr", _FP32, programs, program),
    ]
    if step.moments == 2:
        traffic.append(read("step", _FP32, programs, program))
    if p.all_classes:
        traffic.append(read("dz", p.batch * p.outputs * s, tiles_i, program))
    else:
        traffic += [
            read("y", p.batch * p.outputs * s, tiles_i, program),
            _vectors(step, tiles_i, program),
            read("target", p.batch * _LABEL, programs, program),
            read("norm", p.batch * _FP32, programs, program),
            read("cosine", p.batch * _FP32, programs, program),
        ]
        if step.keeps_input:
            traffic.append(read("z", p.batch * p.outputs * s, tiles_i, program))
    sizes = {"weight": p.outputs * p.inputs} | ({"bias": p.outputs} if step.bias else {})
    for name, size in sizes.items():
        traffic += [read(name, size * w), write(name, size * w)]
        for moment in ("first", "second")[: step.moments]:
            state = size * step.state_itemsize
            traffic += [read(f"{name}.{moment}", state), write(f"{name}.{moment}", state)]
    flops = 2 * programs * config.block_o * config.block_i * covered(p.batch, config.block_b)
    # Label and then vector, or dz alone; after them the parameters.
    iterations = count_tiles(p.batch, config.block_b)
    waits = loop_waits(iterations, config.num_stages, chain=1 if p.all_classes else 2) + 1
    return LaunchCost("update", programs, flops, product(s, arch), tuple(traffic), waits)


def step_cost(step: Step, arch: Architecture) -> StepCost:
    """The three launches of a step, or four, with the tiles that the rules choose first.

    Args:
        step: Shapes, dtype, objective and optimizer.
        arch: The GPU the tiles are chosen for.

    Returns:
        Bytes and flops of forward, finalise, where it runs twice finalise again, and update.

    Example:
        >>> from spela_kernels.gpu.architectures import find_architecture
        >>> a100 = find_architecture("sm_80")
        >>> cost = step_cost(Step(Problem(50, 784, 1024, 10, 4, 4)), a100)
        >>> [launch.programs for launch in cost.launches]
        [128, 2, 416]
    """
    forward = pick_forward(step.problem, arch)[0]
    partials = count_tiles(step.problem.outputs, forward.block_o)
    twice = finalises_twice(step.problem, arch, partials)
    # With a learnt slope, dL/dz is stored for the other objectives too.
    rows, dz = (pick_finalise(step.problem, arch, stores_dz)[0] for stores_dz in (False, True))
    finalise = [
        _finalise(step, dz if step.problem.all_classes and not twice else rows, arch, partials)
    ]
    if twice:
        finalise.append(_finalise(step, dz, arch, partials=1, saved=True))
    return StepCost(
        (
            _forward(step, forward, arch),
            *finalise,
            _update(step, pick_update(step.problem, arch)[0], arch),
        ),
    )
