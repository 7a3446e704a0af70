"""The linear layer on the CPU: two products with everything else in as few passes as possible.

The reference's mathematics, arranged for memory: bias and activation inside the first product, the update
inside the second, and between them one (B, O) buffer that starts as the labels' vectors and ends as dL/dz.
Buffers are not kept between steps: the allocator hands the same memory out again, and a workspace of our own
measured no faster. Axes: B batch, I in, O out, C classes.
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
from spela_kernels.gemm import add_product_, linear, product
from spela_kernels.linear.types import Forward, Gradient, Parameters
from spela_kernels.objectives import get_objective
from spela_kernels.precision import without_autocast
from spela_kernels.rows import NORM_EPS, widened
from spela_kernels.rules import AdamRule, SgdRule, sgd_update_

__all__ = ["adam_step_", "backward", "forward", "scores", "sgd_step_"]

_aten = torch.ops.aten
# dL/dy becomes dL/dz in place, by torch's own kernels; v is z where phi' needs it, else y.
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
    """1 / norm, and 0 for rows that have no direction."""
    return torch.threshold(norm, NORM_EPS, math.inf).reciprocal_()


def _class_cosines(wide: Tensor, inverse: Tensor, vectors: Tensor) -> Tensor:
    dots, _ = linear(wide, vectors, None, "identity", 0.0)  # (B, C)
    return dots.mul_(inverse[:, None])


@without_autocast
def scores(
    x: Tensor, params: Parameters, vectors: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Layer output (B, O) and its cosines to every class vector (B, C)."""
    y, _ = _activate(x, params, settings)
    wide = widened(y)
    inverse = _inverse(torch.linalg.vector_norm(wide, dim=1))
    return y, _class_cosines(wide, inverse, widened(vectors))


class _Rows(NamedTuple):
    """What the gradient takes over from the forward in a fused step."""

    wide: Tensor  # (B, O) y in at least float32
    inverse: Tensor  # (B,) 1 / |y|
    vectors: Tensor  # (C, O) in at least float32
    own: Tensor | None  # (B, O) each label's vector; None for all-class objectives


def _rows(wide: Tensor, norm: Tensor, vectors: Tensor, target: Tensor, objective: str) -> _Rows:
    wide_vectors = widened(vectors)
    own = None
    if not get_objective(objective).all_classes:
        own = torch.embedding(wide_vectors, target)
    return _Rows(wide, _inverse(norm), wide_vectors, own)


def _forward(
    x: Tensor, params: Parameters, vectors: Tensor, target: Tensor, settings: Settings
) -> tuple[Forward, _Rows]:
    objective = get_objective(settings.objective)
    y, z = _activate(x, params, settings)
    wide = widened(y)
    norm = torch.linalg.vector_norm(wide, dim=1)
    rows = _rows(wide, norm, vectors, target, settings.objective)
    if rows.own is None:
        cosine = _class_cosines(rows.wide, rows.inverse, rows.vectors)
    else:
        cosine = (rows.own * rows.wide).sum(dim=1).mul_(rows.inverse)
    loss = objective.loss(cosine, target, settings.scale).mean()
    kept = z if get_activation(settings.activation).needs_input else y.new_empty(0)
    return Forward(loss, y, kept, norm, cosine), rows


def _output_gradient(rows: _Rows, cosine: Tensor, q: Tensor) -> Tensor:
    """dL/dy (B, O) from q = dL/dcosine: (sum_j q_j v_j - <q, c> y/|y|) / |y| in two passes."""
    wide, inverse, vectors, own = rows
    if own is None:
        along = (q * cosine).sum(dim=1).mul_(inverse).mul_(inverse).neg_()
        return (wide * along[:, None]).addmm_(q * inverse[:, None], vectors)
    pull = q * inverse
    along = (pull * cosine).mul_(inverse)
    return own.mul_(pull[:, None]).addcmul_(wide, along[:, None], value=-1)


def _gradient_rows(
    rows: _Rows,
    params: Parameters,
    target: Tensor,
    settings: Settings,
    saved: Forward,
    grad_loss: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """dL/dz (B, O), in the memory of `rows.own`, and the gradient of prelu's slope (1,)."""
    objective = get_objective(settings.objective)
    q = objective.derivative(saved.cosine, target, settings.scale).div_(len(target))
    if grad_loss is not None:
        q.mul_(grad_loss)
    dy = _output_gradient(rows, saved.cosine, q)
    if params.slope is not None:
        z = widened(saved.pre_activation)
        dslope = (dy * z.clamp_max(0)).sum().to(params.slope.dtype).reshape(1)
        phi = get_activation(settings.activation)
        return dy.mul_(phi.derivative(z, widened(params.slope))), dslope
    needs_input = get_activation(settings.activation).needs_input
    v = widened(saved.pre_activation) if needs_input else rows.wide
    return _BACKWARD[settings.activation](dy, v, settings.negative_slope), None


@without_autocast
def forward(
    x: Tensor, params: Parameters, vectors: Tensor, target: Tensor, settings: Settings
) -> Forward:
    """y = phi(x W^T + b), its row norms and cosines, and the mean loss."""
    return _forward(x, params, vectors, target, settings)[0]


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
    rows = _rows(widened(saved.y), saved.norm, vectors, target, settings.objective)
    return _gradients(x, params, *_gradient_rows(rows, params, target, settings, saved, grad_loss))


def _gradients(x: Tensor, params: Parameters, dz: Tensor, dslope: Tensor | None) -> Gradient:
    dweight = product(dz.to(x.dtype), x).to(params.weight.dtype)
    dbias = None if params.bias is None else dz.sum(dim=0).to(params.bias.dtype)
    return Gradient(dweight, dbias, dslope)


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
    saved, rows = _forward(x, params, vectors, target, settings)
    dz, dslope = _gradient_rows(rows, params, target, settings, saved)
    buffers = momentum_buffers or Parameters(None, None, None)  # type: ignore[arg-type]
    if rule.nesterov or params.weight.dtype != dz.dtype:
        gradient = product(dz.to(x.dtype), x).to(params.weight.dtype)
        sgd_update_(params.weight, gradient, buffers.weight, lr, rule)
    elif buffers.weight is None:
        step = float(lr)
        rows, decay = dz.to(x.dtype), 1 - step * rule.weight_decay
        add_product_(params.weight, rows, x, beta=decay, alpha=-step)
    else:
        add_product_(buffers.weight, dz.to(x.dtype), x, beta=rule.momentum, alpha=1.0)
        if rule.weight_decay != 0:
            buffers.weight.add_(params.weight, alpha=rule.weight_decay)
        params.weight.add_(buffers.weight, alpha=-float(lr))
    if params.bias is not None:
        dbias = dz.sum(dim=0).to(params.bias.dtype)
        sgd_update_(params.bias, dbias, buffers.bias, lr, rule)
    if params.slope is not None and dslope is not None:
        sgd_update_(params.slope, dslope, buffers.slope, lr, rule)
    return saved.loss, saved.y


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
    saved, rows = _forward(x, params, vectors, target, settings)
    gradients = _gradients(x, params, *_gradient_rows(rows, params, target, settings, saved))
    for parameter, gradient, exp_avg, exp_avg_sq in zip(
        params, gradients, exp_avgs, exp_avg_sqs, strict=True
    ):
        if parameter is None or gradient is None or exp_avg is None or exp_avg_sq is None:
            continue
        fused_adam_update_(parameter, gradient, exp_avg, exp_avg_sq, step, lr, rule)
    return saved.loss, saved.y
