"""The launches of the grouped projection's Triton kernels: buffers, arguments and tiles.

Axes: B batch, K kernels, D pooled map size, E symmetric dimension, G groups, C classes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spela_kernels.architectures import Architecture
from spela_kernels.contracts import Settings
from spela_kernels.launching import architecture_of, first_that_fits, run, strides, vector_width
from spela_kernels.objectives import get_objective
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
from spela_kernels.projection.kernels import classes_kernel, forward_kernel, gradient_kernel
from spela_kernels.projection.update_kernel import update_kernel
from spela_kernels.rules import Step

__all__ = [
    "Classes",
    "Projected",
    "Projection",
    "Update",
    "launch_classes",
    "launch_forward",
    "launch_gradient",
    "launch_update",
]


class Projected(NamedTuple):
    """What `forward` leaves; empty where the caller has no use for it."""

    p: Tensor  # (B, K, E)
    norm: Tensor  # (B, K)
    cosine: Tensor  # (B, K) or (B, K, G)
    shares: Tensor  # (programs,): of the mean loss
    dp: Tensor  # (B, K, E): B K dL/dp


class Classes(NamedTuple):
    """What `classes` leaves; empty where the caller has no use for it."""

    scores: Tensor  # (B, C)
    shares: Tensor  # (B,): of the mean loss
    q: Tensor  # (B, C): B dL/dS


@dataclass(frozen=True)
class Update(Step):
    """What the update kernel does with dP, and the projection's optimizer state."""

    first: Tensor | None = None
    second: Tensor | None = None

    def one_layout(self) -> bool:
        """Whether the state has one set of strides, as the kernel assumes."""
        return self.second is None or (
            self.first is not None and self.first.stride() == self.second.stride()
        )


@dataclass(frozen=True)
class Projection:
    """The tensors of a call and what follows from them."""

    z: Tensor
    projection: Tensor
    vectors: Tensor
    groups: Tensor
    target: Tensor | None
    settings: Settings

    @functools.cached_property
    def arch(self) -> Architecture:
        return architecture_of(self.z.device)

    @functools.cached_property
    def all_classes(self) -> bool:
        return self.target is None or get_objective(self.settings.objective).all_classes

    @functools.cached_property
    def problem(self) -> Problem:
        batch, kernels, size = self.z.shape
        groups, dim = self.vectors.shape[1:]
        itemsize = max(self.z.element_size(), self.projection.element_size())
        return Problem(batch, kernels, size, dim, groups, self.groups.shape[1], itemsize)

    def rows(self, *last: int, dtype: torch.dtype = torch.float32, used: bool = True) -> Tensor:
        """An unwritten (B, K, *last), or an empty tensor."""
        shape = (*self.z.shape[:2], *last) if used else (0,)
        return self.z.new_empty(shape, dtype=dtype)


def _given(*tensors: Tensor) -> tuple[Tensor | None, ...]:
    return tuple(tensor if tensor.numel() > 0 else None for tensor in tensors)


def launch_forward(call: Projection, *, saves: bool, gradient: bool = False) -> Projected:
    """Cosines; p and norm if `saves`; for label objectives the loss and, with `gradient`, dp."""
    z, projection, vectors, groups, target = (
        call.z, call.projection, call.vectors, call.groups, call.target,
    )  # fmt: skip
    problem, label = call.problem, not call.all_classes
    p = call.rows(problem.dim, dtype=z.dtype, used=saves)
    norm = call.rows(used=saves)
    cosine = call.rows(*(() if label else (problem.groups,)), used=saves or not label)
    dp = call.rows(problem.dim, dtype=z.dtype, used=gradient and label)
    result: list[Projected] = []

    def launch(config: ForwardConfig) -> None:
        programs = config.programs(problem)
        shares = z.new_empty(programs if label else 0, dtype=torch.float32)
        result[:] = [Projected(p, norm, cosine, shares, dp)]
        run(
            call.arch,
            forward_kernel,
            programs,
            (
                z, projection, vectors, groups, target, *_given(*result[0]),
                *z.shape, problem.dim, problem.groups, problem.classes,
                *z.stride(), *projection.stride(), *vectors.stride(),
                *groups.stride(), *strides(target, 1),
                call.settings.objective, call.all_classes, config.precision, config.prefetch,
                vector_width(z), vector_width(projection, vectors, p, dp),
                config.block_b, config.block_d, config.block_e, config.block_g,
            ),
            config.num_warps,
            config.num_stages,
        )  # fmt: skip

    first_that_fits(pick_forward(problem, call.arch), launch)
    return result[0]


def launch_classes(call: Projection, cosine: Tensor, *, loss: bool, gradient: bool) -> Classes:
    """Class scores where there are no labels, else the loss and q, each where asked for."""
    problem = call.problem
    shape = (problem.batch, problem.classes)
    result = Classes(
        cosine.new_empty(shape if call.target is None else 0),
        cosine.new_empty(problem.batch if loss else 0),
        cosine.new_empty(shape if gradient else 0),
    )

    def launch(config: ClassesConfig) -> None:
        run(
            call.arch,
            classes_kernel,
            problem.batch,
            (
                cosine, call.groups, call.target, *_given(*result),
                problem.batch, problem.kernels, problem.groups, problem.classes,
                *call.groups.stride(), *strides(call.target, 1),
                call.settings.objective, call.settings.scale, config.block_k, config.block_c,
            ),
            config.num_warps,
        )  # fmt: skip

    first_that_fits(pick_classes(problem, call.arch), launch)
    return result


def launch_gradient(
    call: Projection, p: Tensor, norm: Tensor, cosine: Tensor, q: Tensor | None
) -> Tensor:
    """dp (B, K, E) from what `forward` saved: B K dL/dp."""
    vectors, groups, problem = call.vectors, call.groups, call.problem
    dp = torch.empty_like(p)

    def launch(config: GradientConfig) -> None:
        run(
            call.arch,
            gradient_kernel,
            config.programs(problem),
            (
                p, norm, cosine, q, vectors, groups, call.target, dp,
                problem.batch, problem.kernels, problem.dim, problem.groups, problem.classes,
                *vectors.stride(), *groups.stride(), *strides(call.target, 1),
                call.settings.objective, config.precision, vector_width(p, vectors),
                config.block_b, config.block_e, config.block_c,
            ),
            config.num_warps,
        )  # fmt: skip

    first_that_fits(pick_gradient(problem, call.arch), launch)
    return dp


def launch_update(
    call: Projection,
    dp: Tensor,
    update: Update,
    output: Tensor,
    shares: Tensor | None = None,
    loss: Tensor | None = None,
) -> Tensor:
    """dz (B, K, D); dP is stored in `output`, or applied to it where it is the projection."""
    z, projection, problem = call.z, call.projection, call.problem
    dz = call.rows(problem.size, dtype=z.dtype)

    def launch(config: UpdateConfig) -> None:
        run(
            call.arch,
            update_kernel,
            config.programs(problem),
            (
                z, dp, projection, dz, output, update.first, update.second,
                shares, loss, update.grad_loss, update.lr, update.step,
                *z.shape, problem.dim, 0 if shares is None else shares.numel(),
                *z.stride(), *projection.stride(), *output.stride(), *strides(update.first, 3),
                *update.constants, config.precision,
                vector_width(z, dz),
                vector_width(dp, projection, output, update.first, update.second),
                config.block_b, config.block_d, config.block_e,
            ),
            config.num_warps,
            config.num_stages,
        )  # fmt: skip

    first_that_fits(pick_update(problem, call.arch), launch)
    return dz
