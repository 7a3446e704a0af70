"""The linear layer on the CPU: two products with everything else in as few passes as possible.

The reference's mathematics, arranged for memory: bias and activation inside the first product, the update
inside or right after the second, and between them one compiled pass over the rows (`compiled.py`) or, where
that does not fit, operators of torch. Buffers are not kept between steps: the allocator hands the same memory
out again. Axes: B batch, I in, O out, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from spela_kernels.activations import get_activation
from spela_kernels.contracts import Settings
from spela_kernels.fused_rules import fused_adam_update_
from spela_kernels.gemm import adam_product_, add_product_, linear, product
from spela_kernels.linear.compiled import step_rows
from spela_kernels.linear.types import Forward, Gradient, Parameters
from spela_kernels.objectives import get_objective
from spela_kernels.precision import without_autocast
from spela_kernels.rows import NORM_EPS, widened
from spela_kernels.rules import AdamRule, SgdRule, sgd_update_

__all__ = ["adam_step_", "backward", "forward", "scores", "sgd_step_"]

_aten = torch.ops.aten
# dL/dy becomes dL/dz in place, by torch's own kernels; v is z where phi' needs it, else y. What has no row
# here goes through the activation's derivative.
_BACKWARD: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "leaky_relu": lambda dy, v, slope: _aten.leaky_relu_backward.grad_input(
        dy, v, slope, True, grad_input=dy
    ),
    "relu": lambda dy, v, slope: _aten.threshold_backward.grad_input(dy, v, 0, grad_input=dy),
    "tanh": lambda dy, v, slope: _aten.tanh_backward.grad_input(dy, v, grad_input=dy),
    "elu": lambda dy, v, slope: _aten.elu_backward.grad_input(
        dy, 1.0, 1.0, 1.0, True, v, grad_input=dy
    ),
    "gelu": lambda dy, v, slope: _aten.gelu_backward.grad_input(dy, v, grad_input=dy),
    "identity": lambda dy, v, slope: dy,
}


def _activate(x: Tensor, params: Parameters, settings: Settings) -> tuple[Tensor, Tensor]:
    weight, bias = params.weight, params.bias
    if weight.dtype != x.dtype:
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    slope = settings.negative_slope if params.slope is None else params.slope.to(x.dtype)
    return linear(x, weight, bias, settings.activation, slope)


def _inverse(norm: Tensor) -> Tensor:
    """1 / norm as gradients take it: 0 for rows that have no direction."""
    return torch.threshold(norm, NORM_EPS, math.inf).reciprocal_()


def _reciprocal(norm: Tensor) -> Tensor:
    """1 / norm as cosines take it."""
    return norm.clamp_min(NORM_EPS).reciprocal_()


def _class_cosines(wide: Tensor, norm: Tensor, vectors: Tensor) -> Tensor:
    dots, _ = linear(wide, vectors, None, None, 0.0)  # (B, C)
    return dots.mul_(_reciprocal(norm)[:, None])


@without_autocast
def scores(
    x: Tensor, params: Parameters, vectors: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Layer output (B, O) and its cosines to every class vector (B, C)."""
    y, _ = _activate(x, params, settings)
    wide = widened(y)
    norm = torch.linalg.vector_norm(wide, dim=1)
    return y, _class_cosines(wide, norm, widened(vectors))


def _statistics(
    y: Tensor, z: Tensor, vectors: Tensor, target: Tensor, settings: Settings
) -> Forward:
    objective = get_objective(settings.objective)
    wide, wide_vectors = widened(y), widened(vectors)
    norm = torch.linalg.vector_norm(wide, dim=1)
    if objective.all_classes:
        cosine = _class_cosines(wide, norm, wide_vectors)
    else:
        own = torch.embedding(wide_vectors, target)  # (B, O)
        cosine = own.mul_(wide).sum(dim=1).mul_(_reciprocal(norm))
    loss = objective.loss(cosine, target, settings.scale).mean()
    kept = z if get_activation(settings.activation).needs_input else y.new_empty(0)
    return Forward(loss, y, kept, norm, cosine)


@without_autocast
def forward(
    x: Tensor, params: Parameters, vectors: Tensor, target: Tensor, settings: Settings
) -> Forward:
    """y = phi(x W^T + b), its row norms and cosines, and the mean loss."""
    return _statistics(*_activate(x, params, settings), vectors, target, settings)


def _output_gradient(
    vectors: Tensor, target: Tensor, settings: Settings, saved: Forward, grad_loss: Tensor | None
) -> Tensor:
    """dL/dy (B, O) = (sum_j q_j v_j - <q, c> y/|y|) / |y| in two passes, from q = dL/dcosine."""
    objective = get_objective(settings.objective)
    wide, wide_vectors, inverse = widened(saved.y), widened(vectors), _inverse(saved.norm)
    q = objective.derivative(saved.cosine, target, settings.scale) / len(target)
    if grad_loss is not None:
        q = q * grad_loss
    if objective.all_classes:
        along = (q * saved.cosine).sum(dim=1).mul_(inverse).mul_(inverse).neg_()
        return (wide * along[:, None]).addmm_(q * inverse[:, None], wide_vectors)
    pull = q * inverse
    along = (pull * saved.cosine).mul_(inverse)
    own = torch.embedding(wide_vectors, target).mul_(pull[:, None])
    return own.addcmul_(wide, along[:, None], value=-1)


class _Rows(NamedTuple):
    """Gradients between the two products, in at least float32."""

    dz: Tensor  # (B, O)
    dbias: Tensor  # (O,)
    dslope: Tensor | None  # (1,) of prelu


def _through_activation(
    dy: Tensor, y: Tensor, z: Tensor, params: Parameters, settings: Settings
) -> _Rows:
    """dL/dz in the memory of dy; `z` where phi' needs it."""
    phi = get_activation(settings.activation)
    v = widened(z if phi.needs_input else y)
    if phi.in_kernels and settings.activation in _BACKWARD:
        dz = _BACKWARD[settings.activation](dy, v, settings.negative_slope)
        return _Rows(dz, dz.sum(dim=0), None)
    slope = settings.negative_slope if params.slope is None else widened(params.slope)
    dslope = None
    if params.slope is not None:
        dslope = (dy * v.clamp_max(0)).sum().to(params.slope.dtype).reshape(1)
    dz = dy.mul_(phi.derivative(v, slope))
    return _Rows(dz, dz.sum(dim=0), dslope)


@without_autocast
def backward(
    x: Tensor,
    params: Parameters,
    vectors: Tensor,
    target: Tensor,
    settings: Settings,
    saved: Forward,
    grad_loss: Tensor | None = None,
) -> Gradient:
    """Gradients of grad_loss * loss (None: 1) for weight, bias and slope, from what `forward` saved."""
    dy = _output_gradient(vectors, target, settings, saved, grad_loss)
    rows = _through_activation(dy, saved.y, saved.pre_activation, params, settings)
    return _gradients(x, params, rows)


def _gradients(x: Tensor, params: Parameters, rows: _Rows) -> Gradient:
    dweight = product(rows.dz.to(x.dtype), x).to(params.weight.dtype)
    dbias = None if params.bias is None else rows.dbias.to(params.bias.dtype)
    return Gradient(dweight, dbias, rows.dslope)


def _forward_and_rows(
    x: Tensor, params: Parameters, vectors: Tensor, target: Tensor, settings: Settings
) -> tuple[Tensor, Tensor, _Rows]:
    """Loss (), y (B, O) and the gradients between the two products of a fused step."""
    y, z = _activate(x, params, settings)
    done = step_rows(widened(y), widened(vectors), target, settings)
    if done is None:
        saved = _statistics(y, z, vectors, target, settings)
        loss, dy = saved.loss, _output_gradient(vectors, target, settings, saved, None)
    elif done.activated:
        return done.loss, y, _Rows(done.gradient, done.total, None)
    else:
        loss, dy = done.loss, done.gradient
    return loss, y, _through_activation(dy, y, z, params, settings)


@without_autocast
def sgd_step_(
    x: Tensor,
    params: Parameters,
    vectors: Tensor,
    target: Tensor,
    settings: Settings,
    momentum_buffers: Parameters | None,
    lr: Tensor,
    rule: SgdRule,
) -> tuple[Tensor, Tensor]:
    """Forward, closed-form gradient and torch.optim.SGD's update (dampening 0) in place."""
    loss, y, rows = _forward_and_rows(x, params, vectors, target, settings)
    buffers = momentum_buffers or Parameters(None, None, None)  # type: ignore[arg-type]
    dz = rows.dz.to(x.dtype)
    if rule.nesterov or params.weight.dtype != rows.dz.dtype:
        gradient = product(dz, x).to(params.weight.dtype)
        sgd_update_(params.weight, gradient, buffers.weight, lr, rule)
    elif buffers.weight is None:
        step = float(lr)
        add_product_(params.weight, dz, x, beta=1 - step * rule.weight_decay, alpha=-step)
    else:
        add_product_(buffers.weight, dz, x, beta=rule.momentum, alpha=1.0)
        if rule.weight_decay != 0:
            buffers.weight.add_(params.weight, alpha=rule.weight_decay)
        params.weight.add_(buffers.weight, alpha=-float(lr))
    if params.bias is not None:
        dbias = rows.dbias.to(params.bias.dtype)
        if rule == SgdRule():
            params.bias.add_(dbias, alpha=-float(lr))
        else:
            sgd_update_(params.bias, dbias, buffers.bias, lr, rule)
    if params.slope is not None and rows.dslope is not None:
        sgd_update_(params.slope, rows.dslope, buffers.slope, lr, rule)
    return loss, y


@without_autocast
def adam_step_(
    x: Tensor,
    params: Parameters,
    vectors: Tensor,
    target: Tensor,
    settings: Settings,
    exp_avgs: Parameters,
    exp_avg_sqs: Parameters,
    step: Tensor,
    lr: Tensor,
    rule: AdamRule,
) -> tuple[Tensor, Tensor]:
    """Forward, closed-form gradient and torch.optim.Adam's update in place; `step` counts from 1."""
    loss, y, rows = _forward_and_rows(x, params, vectors, target, settings)
    adam_product_(
        params.weight, rows.dz.to(x.dtype), x, exp_avgs.weight, exp_avg_sqs.weight, step, lr, rule
    )
    for parameter, gradient, exp_avg, exp_avg_sq in (
        (params.bias, rows.dbias, exp_avgs.bias, exp_avg_sqs.bias),
        (params.slope, rows.dslope, exp_avgs.slope, exp_avg_sqs.slope),
    ):
        if parameter is None or gradient is None or exp_avg is None or exp_avg_sq is None:
            continue
        gradient = gradient.to(parameter.dtype)
        fused_adam_update_(parameter, gradient, exp_avg, exp_avg_sq, step, lr, rule)
    return loss, y
