"""The launches of the grouped projection's Triton kernels: buffers, arguments and tiles.

Axes: B batch, K kernels, D pooled map size, E symmetric dimension, G groups, C classes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spela_kernels.gpu.architectures import Architecture
from spela_kernels.gpu.launching import architecture_of, launch, strides, vector_width
from spela_kernels.gpu.updates import step_arguments
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
from spela_kernels.projection.types import Call
from spela_kernels.projection.update_kernel import update_kernel
from spela_kernels.rules import Step

__all__ = [
    "Classes",
    "Plan",
    "Projected",
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
class Plan:
    """A call, and what its launches follow from."""

    call: Call

    @functools.cached_property
    def arch(self) -> Architecture:
        return architecture_of(self.call.z.device)

    @functools.cached_property
    def all_classes(self) -> bool:
        call = self.call
        return call.target is None or get_objective(call.settings.objective).all_classes

    @functools.cached_property
    def problem(self) -> Problem:
        z, projection, vectors, groups, _, _ = self.call
        itemsize = max(z.element_size(), projection.element_size())
        batch, kernels, size = z.shape
        compared, dim = vectors.shape[1:]
        return Problem(batch, kernels, size, dim, compared, groups.shape[1], itemsize)

    def rows(self, *last: int, dtype: torch.dtype = torch.float32, used: bool = True) -> Tensor:
        """An unwritten (B, K, *last), or an empty tensor."""
        z = self.call.z
        return z.new_empty((*z.shape[:2], *last) if used else (0,), dtype=dtype)


def _given(*tensors: Tensor) -> tuple[Tensor | None, ...]:
    return tuple(tensor if tensor.numel() > 0 else None for tensor in tensors)


def launch_forward(plan: Plan, *, saves: bool, gradient: bool = False) -> Projected:
    """Cosines; p and norm if `saves`; for label objectives the loss and, with `gradient`, dp."""
    z, projection, vectors, groups, target, settings = plan.call
    problem, label = plan.problem, not plan.all_classes
    p = plan.rows(problem.dim, dtype=z.dtype, used=saves)
    norm = plan.rows(used=saves)
    cosine = plan.rows(*(() if label else (problem.groups,)), used=saves or not label)
    dp = plan.rows(problem.dim, dtype=z.dtype, used=gradient and label)

    def loss_shares(config: ForwardConfig) -> tuple[Tensor]:
        return (z.new_empty(config.programs(problem) if label else 0, dtype=torch.float32),)

    def arguments(config: ForwardConfig, shares: Tensor) -> tuple[object, ...]:
        return (
            z, projection, vectors, groups, target, *_given(p, norm, cosine, shares, dp),
            *z.shape, problem.dim, problem.groups, problem.classes,
            *z.stride(), *projection.stride(), *vectors.stride(),
            *groups.stride(), *strides(target, 1),
            settings.objective, plan.all_classes, config.precision, config.prefetch,
            vector_width(z), vector_width(projection, vectors, p, dp),
            config.block_b, config.block_d, config.block_e, config.block_g,
        )  # fmt: skip

    configs = pick_forward(problem, plan.arch)
    (shares,) = launch(plan.arch, forward_kernel, problem, configs, arguments, loss_shares)
    return Projected(p, norm, cosine, shares, dp)


def launch_classes(plan: Plan, cosine: Tensor, *, loss: bool, gradient: bool) -> Classes:
    """Class scores where there are no labels, else the loss and q, each where asked for."""
    _, _, _, groups, target, settings = plan.call
    problem = plan.problem
    shape = (problem.batch, problem.classes)
    result = Classes(
        cosine.new_empty(shape if target is None else 0),
        cosine.new_empty(problem.batch if loss else 0),
        cosine.new_empty(shape if gradient else 0),
    )

    def arguments(config: ClassesConfig) -> tuple[object, ...]:
        return (
            cosine, groups, target, *_given(*result),
            problem.batch, problem.kernels, problem.groups, problem.classes,
            *groups.stride(), *strides(target, 1),
            settings.objective, settings.scale, config.block_k, config.block_c,
        )  # fmt: skip

    launch(plan.arch, classes_kernel, problem, pick_classes(problem, plan.arch), arguments)
    return result


def launch_gradient(
    plan: Plan, p: Tensor, norm: Tensor, cosine: Tensor, q: Tensor | None
) -> Tensor:
    """dp (B, K, E) from what `forward` saved: B K dL/dp."""
    _, _, vectors, groups, target, settings = plan.call
    problem, dp = plan.problem, torch.empty_like(p)

    def arguments(config: GradientConfig) -> tuple[object, ...]:
        return (
            p, norm, cosine, q, vectors, groups, target, dp,
            problem.batch, problem.kernels, problem.dim, problem.groups, problem.classes,
            *vectors.stride(), *groups.stride(), *strides(target, 1),
            settings.objective, config.precision, vector_width(p, vectors),
            config.block_b, config.block_e, config.block_c,
        )  # fmt: skip

    launch(plan.arch, gradient_kernel, problem, pick_gradient(problem, plan.arch), arguments)
    return dp


def launch_update(
    plan: Plan,
    dp: Tensor,
    output: Tensor,
    *,
    step: Step[Tensor | None] | None = None,
    grad_loss: Tensor | None = None,
    shares: Tensor | None = None,
    loss: Tensor | None = None,
) -> Tensor:
    """dz (B, K, D); dP is stored in `output`, or with a `step` applied to it, which is the projection."""
    z, projection, problem = plan.call.z, plan.call.projection, plan.problem
    first, second = (None, None) if step is None else (step.first, step.second)
    rule, lr, number = (None, None, None) if step is None else (step.rule, step.lr, step.number)
    dz = plan.rows(problem.size, dtype=z.dtype)

    def arguments(config: UpdateConfig) -> tuple[object, ...]:
        return (
            z, dp, projection, dz, output, first, second, shares, loss, grad_loss, lr, number,
            *z.shape, problem.dim, 0 if shares is None else shares.numel(),
            *z.stride(), *projection.stride(), *output.stride(), *strides(first, 3),
            *step_arguments(rule), config.precision,
            vector_width(z, dz), vector_width(dp, projection, output, first, second),
            config.block_b, config.block_d, config.block_e,
        )  # fmt: skip

    launch(plan.arch, update_kernel, problem, pick_update(problem, plan.arch), arguments)
    return dz
