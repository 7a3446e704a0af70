"""The launches of the linear layer's Triton kernels: buffers, arguments and tiles.

A step is three launches: forward, finalise, update. Row scalars are finalised in a launch of their own:
otherwise each of the update's hundreds of programs would sum the partial buffers again.

Axes: B batch, I in, O out, C classes, T column tiles of the forward kernel.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spela_kernels.activations import get_activation
from spela_kernels.architectures import Architecture
from spela_kernels.contracts import Settings
from spela_kernels.launching import (
    architecture_of,
    first_that_fits,
    run,
    strides,
    vector_width,
)
from spela_kernels.linear.configs import (
    FinaliseConfig,
    ForwardConfig,
    Problem,
    UpdateConfig,
    pick_finalise,
    pick_forward,
    pick_update,
)
from spela_kernels.linear.kernels import finalise_kernel, forward_kernel
from spela_kernels.linear.types import Gradient, Parameters
from spela_kernels.linear.update_kernel import update_kernel
from spela_kernels.objectives import get_objective
from spela_kernels.rules import Step

__all__ = [
    "NO_STATE",
    "Layer",
    "Rows",
    "Update",
    "launch_finalise",
    "launch_forward",
    "launch_update",
]

NO_STATE = (None, None, None)


class Rows(NamedTuple):
    """What `finalise` leaves: row results, and dL/dz with its share of prelu's gradient or None."""

    norm: Tensor  # (B,)
    cosine: Tensor  # (B,) or (B, C)
    losses: Tensor  # (B,); unwritten without labels
    dz: Tensor | None  # (B, O): B dL/dz
    dslope: Tensor | None  # (programs,)


@dataclass(frozen=True)
class Layer:
    """The tensors of a call and what follows from them."""

    x: Tensor
    params: Parameters
    vectors: Tensor
    target: Tensor | None
    settings: Settings

    @functools.cached_property
    def arch(self) -> Architecture:
        return architecture_of(self.x.device)

    @functools.cached_property
    def all_classes(self) -> bool:
        return self.target is None or get_objective(self.settings.objective).all_classes

    @functools.cached_property
    def stores_dz(self) -> bool:
        """Whether `finalise` leaves dL/dz (its docstring says why) rather than `update` rebuilds it."""
        return self.all_classes or self.params.slope is not None

    @functools.cached_property
    def problem(self) -> Problem:
        batch, inputs = self.x.shape
        classes, outputs = self.vectors.shape
        return Problem(
            batch, inputs, outputs, classes,
            self.x.element_size(), self.params.weight.element_size(), self.all_classes,
        )  # fmt: skip


def _padded(size: int) -> int:
    return -(-size // 16) * 16


def _dots_strides(squares: Tensor, dots: Tensor) -> tuple[int, int, int]:
    """Of the tile axis of both, and of the row axis of dots."""
    return squares.stride(0), dots.stride(0), dots.stride(1)


def launch_forward(layer: Layer) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """y, z or None, and the partial sums of squares and dots."""
    x, vectors, problem, settings = layer.x, layer.vectors, layer.problem, layer.settings
    weight, bias, slope = layer.params
    y = x.new_empty(problem.batch, problem.outputs)
    z = torch.empty_like(y) if get_activation(settings.activation).needs_input else None
    partials: list[Tensor] = []

    def launch(config: ForwardConfig) -> None:
        # Rows and classes are padded to whole sectors: wide loads, and no sector shared by two tiles.
        shape = (-(-problem.outputs // config.block_o), _padded(problem.batch))  # (T, >= B)
        classes = (_padded(problem.classes),) if layer.all_classes else ()
        partials[:] = (
            x.new_empty(shape, dtype=torch.float32),
            x.new_empty(shape + classes, dtype=torch.float32),
        )
        run(
            layer.arch,
            forward_kernel,
            config.programs(problem),
            (
                x, weight, bias, slope, vectors, layer.target, y, z, *partials,
                problem.batch, problem.inputs, problem.outputs, problem.classes,
                *x.stride(), *weight.stride(), *strides(bias, 1),
                *vectors.stride(), *strides(layer.target, 1),
                *_dots_strides(*partials),
                settings.activation, settings.negative_slope, layer.all_classes,
                config.precision, config.prefetch, vector_width(x, weight), vector_width(y, vectors),
                config.block_b, config.block_o, config.block_i, config.block_c,
            ),
            config.num_warps,
            config.num_stages,
        )  # fmt: skip

    first_that_fits(pick_forward(problem, layer.arch), launch)
    return y, z, partials[0], partials[1]


def launch_finalise(
    layer: Layer,
    y: Tensor,
    z: Tensor | None,
    squares: Tensor,
    dots: Tensor,
    *,
    saved: bool = False,
    gradient: bool = False,
) -> Rows:
    """Row results; with `gradient` and where the layer stores it, dL/dz. `saved`: from norm and cosines."""
    x, vectors, problem, settings = layer.x, layer.vectors, layer.problem, layer.settings
    tiles = 1 if saved else squares.shape[0]
    norm = squares if saved else x.new_empty(problem.batch, dtype=torch.float32)
    shape = (problem.batch, problem.classes) if layer.all_classes else (problem.batch,)
    cosine = dots if saved else x.new_empty(shape, dtype=torch.float32)
    losses = torch.empty_like(norm)
    has_losses = layer.target is not None and not saved
    dz = None
    if gradient and layer.stores_dz:
        dz = x.new_empty(problem.batch, problem.outputs)
    result: list[Rows] = []

    def launch(config: FinaliseConfig) -> None:
        programs = config.programs(problem, dz is not None)
        slope = layer.params.slope if dz is not None else None
        dslope = None if slope is None else x.new_empty(programs, dtype=torch.float32)
        result[:] = [Rows(norm, cosine, losses, dz, dslope)]
        run(
            layer.arch,
            finalise_kernel,
            programs,
            (
                squares, dots, y, z, vectors, layer.target, slope,
                norm, cosine, losses if has_losses else None, dz, dslope,
                problem.batch, problem.outputs, problem.classes, tiles,
                *y.stride(), *strides(z, 2), *vectors.stride(), *strides(layer.target, 1),
                *((0, 0, problem.classes) if saved else _dots_strides(squares, dots)),
                settings.activation, settings.negative_slope, settings.objective, settings.scale,
                layer.all_classes, saved, config.precision, vector_width(y, z, vectors),
                config.block_b, config.block_o, config.block_c,
            ),
            config.num_warps,
        )  # fmt: skip

    first_that_fits(pick_finalise(problem, layer.arch), launch)
    return result[0]


@dataclass(frozen=True)
class Update(Step):
    """What the update kernel does with a gradient, and the optimizer state of each parameter."""

    first: Parameters | tuple[None, None, None] = NO_STATE
    second: Parameters | tuple[None, None, None] = NO_STATE

    def state(self, index: int) -> tuple[Tensor | None, Tensor | None]:
        """First and second moment of weight, bias or slope (0, 1, 2)."""
        return self.first[index], self.second[index]

    def one_layout(self) -> bool:
        """Whether the state of each parameter has one set of strides, as the kernel assumes."""
        groups = ([t.stride() for t in self.state(index) if t is not None] for index in range(3))
        return all(len(set(strides)) <= 1 for strides in groups)


def launch_update(
    layer: Layer,
    y: Tensor,
    z: Tensor | None,
    rows: Rows,
    update: Update,
    outputs: Parameters | Gradient,
    loss: Tensor | None = None,
) -> None:
    """dW, db and dslope, stored in `outputs` or applied to them."""
    x, vectors, problem, settings = layer.x, layer.vectors, layer.problem, layer.settings
    weight, bias, slope = outputs
    states = [update.state(index) for index in range(3)]
    weight_state = next((t for t in states[0] if t is not None), None)
    bias_state = next((t for t in states[1] if t is not None), None)
    if rows.dz is not None:
        y, z = rows.dz, None

    def launch(config: UpdateConfig) -> None:
        run(
            layer.arch,
            update_kernel,
            config.programs(problem),
            (
                x, y, z, vectors, layer.target, rows.norm, rows.cosine, rows.dz,
                None if loss is None else rows.losses, loss, rows.dslope,
                update.grad_loss, update.lr, update.step,
                weight, *states[0], bias, *states[1], slope, *states[2],
                problem.batch, problem.inputs, problem.outputs, problem.classes,
                0 if rows.dslope is None else rows.dslope.numel(),
                *x.stride(), *y.stride(), *strides(z, 2),
                *vectors.stride(), *strides(layer.target, 1),
                *weight.stride(), *strides(weight_state, 2),
                *strides(bias, 1), *strides(bias_state, 1),
                settings.activation, settings.negative_slope, settings.objective, *update.constants,
                config.precision, vector_width(x, weight, *states[0]), vector_width(y, z, vectors),
                config.block_b, config.block_o, config.block_i,
            ),
            config.num_warps,
            config.num_stages,
        )  # fmt: skip

    first_that_fits(pick_update(problem, layer.arch), launch)
