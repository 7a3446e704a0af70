"""The launches of the linear layer's Triton kernels: buffers, arguments and tiles.

A step is three launches: forward, finalise, update. Row scalars are finalised in a launch of their own:
otherwise each of the update's hundreds of programs would sum the partial buffers again. Where `finalise`
itself would sum too many again for its tiles of dL/dz (`finalises_twice`), it is launched twice.

Axes: B batch, I in, O out, C classes, T column tiles of the forward kernel.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spela_kernels.activations import get_activation
from spela_kernels.gpu.architectures import Architecture
from spela_kernels.gpu.launching import architecture_of, launch, strides, vector_width
from spela_kernels.gpu.tiles import count_tiles
from spela_kernels.gpu.updates import step_arguments
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
from spela_kernels.linear.kernels import finalise_kernel, forward_kernel
from spela_kernels.linear.types import NO_BUFFERS, Buffers, Call, Gradient, Parameters
from spela_kernels.linear.update_kernel import update_kernel
from spela_kernels.objectives import get_objective
from spela_kernels.rules import Step

__all__ = ["Plan", "Projected", "Rows", "launch_finalise", "launch_forward", "launch_update"]


class Projected(NamedTuple):
    """What `forward` leaves: outputs, and sums of a row's squares and dots, in parts."""

    y: Tensor  # (B, O)
    z: Tensor | None  # (B, O) where phi' needs it
    squares: Tensor  # (T, >= B), or (B,) norms of an earlier forward
    dots: Tensor  # (T, >= B), with all classes (T, >= B, >= C), or cosines of an earlier forward


class Rows(NamedTuple):
    """What `finalise` leaves: row results, and dL/dz with its share of prelu's gradient or None."""

    norm: Tensor  # (B,)
    cosine: Tensor  # (B,) or (B, C)
    losses: Tensor  # (B,); unwritten without labels
    dz: Tensor | None  # (B, O): B dL/dz
    dslope: Tensor | None  # (programs,)


@dataclass(frozen=True)
class Plan:
    """A call, and what its launches follow from."""

    call: Call

    @functools.cached_property
    def arch(self) -> Architecture:
        return architecture_of(self.call.x.device)

    @functools.cached_property
    def all_classes(self) -> bool:
        call = self.call
        return call.target is None or get_objective(call.settings.objective).all_classes

    @functools.cached_property
    def stores_dz(self) -> bool:
        """Whether `finalise` leaves dL/dz (its docstring says why) rather than `update` rebuilds it."""
        return self.all_classes or self.call.params.slope is not None

    @functools.cached_property
    def problem(self) -> Problem:
        x, params, vectors, _, _ = self.call
        batch, inputs = x.shape
        classes, outputs = vectors.shape
        return Problem(
            batch, inputs, outputs, classes,
            x.element_size(), params.weight.element_size(), self.all_classes,
        )  # fmt: skip


def _padded(size: int) -> int:
    return 16 * count_tiles(size, 16)


def _dots_strides(squares: Tensor, dots: Tensor) -> tuple[int, int, int]:
    """Of the tile axis of both, and of the row axis of dots."""
    return squares.stride(0), dots.stride(0), dots.stride(1)


def launch_forward(plan: Plan) -> Projected:
    """y, z where phi' needs it, and the partial sums."""
    x, (weight, bias, slope), vectors, target, settings = plan.call
    problem = plan.problem
    y = x.new_empty(problem.batch, problem.outputs)
    z = torch.empty_like(y) if get_activation(settings.activation).needs_input else None

    def partials(config: ForwardConfig) -> tuple[Tensor, Tensor]:
        # Rows and classes are padded to whole sectors: wide loads, and no sector shared by two tiles.
        shape = (count_tiles(problem.outputs, config.block_o), _padded(problem.batch))  # (T, >= B)
        classes = (_padded(problem.classes),) if plan.all_classes else ()
        return (
            x.new_empty(shape, dtype=torch.float32),
            x.new_empty(shape + classes, dtype=torch.float32),
        )

    def arguments(config: ForwardConfig, squares: Tensor, dots: Tensor) -> tuple[object, ...]:
        return (
            x, weight, bias, slope, vectors, target, y, z, squares, dots,
            problem.batch, problem.inputs, problem.outputs, problem.classes,
            *x.stride(), *weight.stride(), *strides(bias, 1),
            *vectors.stride(), *strides(target, 1), *_dots_strides(squares, dots),
            settings.activation, settings.negative_slope, plan.all_classes,
            config.precision, config.prefetch, config.parts,
            vector_width(x, weight), vector_width(y, vectors),
            config.block_b, config.block_o, config.block_i, config.block_c,
        )  # fmt: skip

    configs = pick_forward(problem, plan.arch)
    sums = launch(plan.arch, forward_kernel, problem, configs, arguments, partials)
    return Projected(y, z, *sums)


def launch_finalise(
    plan: Plan, projected: Projected, *, saved: bool = False, gradient: bool = False
) -> Rows:
    """Row results; with `gradient` and where the plan stores it, dL/dz. `saved`: from norm and cosines."""
    x, params, vectors, target, settings = plan.call
    y, z, squares, dots = projected
    problem, stores_dz = plan.problem, gradient and plan.stores_dz
    tiles = 1 if saved else squares.shape[0]
    if stores_dz and not saved and finalises_twice(problem, plan.arch, tiles):
        rows = launch_finalise(plan, projected)
        known = Projected(y, z, rows.norm, rows.cosine)
        second = launch_finalise(plan, known, saved=True, gradient=True)
        return rows._replace(dz=second.dz, dslope=second.dslope)
    norm = squares if saved else x.new_empty(problem.batch, dtype=torch.float32)
    shape = (problem.batch, problem.classes) if plan.all_classes else (problem.batch,)
    cosine = dots if saved else x.new_empty(shape, dtype=torch.float32)
    losses = torch.empty_like(norm)
    has_losses = target is not None and not saved
    dz = x.new_empty(problem.batch, problem.outputs) if stores_dz else None
    slope = params.slope if stores_dz else None

    def shares(config: FinaliseConfig) -> tuple[Tensor | None]:
        programs = config.programs(problem)
        return (None if slope is None else x.new_empty(programs, dtype=torch.float32),)

    def arguments(config: FinaliseConfig, dslope: Tensor | None) -> tuple[object, ...]:
        return (
            squares, dots, y, z, vectors, target, slope,
            norm, cosine, losses if has_losses else None, dz, dslope,
            problem.batch, problem.outputs, problem.classes, tiles,
            *y.stride(), *strides(z, 2), *vectors.stride(), *strides(target, 1),
            *((0, 0, problem.classes) if saved else _dots_strides(squares, dots)),
            settings.activation, settings.negative_slope, settings.objective, settings.scale,
            plan.all_classes, saved, config.precision, vector_width(y, z, vectors),
            config.block_b, config.block_o, config.block_c, config.block_t,
        )  # fmt: skip

    configs = pick_finalise(problem, plan.arch, stores_dz)
    (dslope,) = launch(plan.arch, finalise_kernel, problem, configs, arguments, shares)
    return Rows(norm, cosine, losses, dz, dslope)


def launch_update(
    plan: Plan,
    projected: Projected,
    rows: Rows,
    outputs: Parameters | Gradient,
    *,
    step: Step[Buffers] | None = None,
    grad_loss: Tensor | None = None,
    loss: Tensor | None = None,
) -> None:
    """dW, db and dslope: stored in `outputs`, or with a `step` applied to them."""
    x, _, vectors, target, settings = plan.call
    problem, (weight, bias, slope) = plan.problem, outputs
    first, second = (NO_BUFFERS, NO_BUFFERS) if step is None else (step.first, step.second)
    rule, lr, number = (None, None, None) if step is None else (step.rule, step.lr, step.number)
    weight_state = first[0] if second[0] is None else second[0]
    bias_state = first[1] if second[1] is None else second[1]
    # Beside dz the kernel reads no y; a pointer it has to have.
    y, z = (projected.y, projected.z) if rows.dz is None else (rows.dz, None)

    def arguments(config: UpdateConfig) -> tuple[object, ...]:
        return (
            x, y, z, vectors, target, rows.norm, rows.cosine, rows.dz,
            None if loss is None else rows.losses, loss, rows.dslope, grad_loss, lr, number,
            weight, first[0], second[0], bias, first[1], second[1], slope, first[2], second[2],
            problem.batch, problem.inputs, problem.outputs, problem.classes,
            0 if rows.dslope is None else rows.dslope.numel(),
            *x.stride(), *y.stride(), *strides(z, 2), *vectors.stride(), *strides(target, 1),
            *weight.stride(), *strides(weight_state, 2), *strides(bias, 1), *strides(bias_state, 1),
            settings.activation, settings.negative_slope, settings.objective,
            *step_arguments(rule), config.precision,
            vector_width(x, weight, first[0], second[0]), vector_width(y, z, vectors),
            config.block_b, config.block_o, config.block_i,
        )  # fmt: skip

    launch(plan.arch, update_kernel, problem, pick_update(problem, plan.arch), arguments)
