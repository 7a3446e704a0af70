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
from spela_kernels.cosines import NORM_EPS, narrowed, widened
from spela_kernels.cpu.gemm import linear, product, update_product_
from spela_kernels.cpu.products import fits
from spela_kernels.linear import steps
from spela_kernels.linear.compiled import step_rows
from spela_kernels.linear.types import Buffers, Call, Forward, Gradient, step_of
from spela_kernels.objectives import get_objective
from spela_kernels.precision import without_autocast
from spela_kernels.rules import Step, fused_update_, rates_of

__all__ = ["backward", "forward", "scores", "step_"]

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


def _activate(call: Call) -> tuple[Tensor, Tensor]:
    x, params, settings = call.x, call.params, call.settings
    weight, bias = params.weight, params.bias
    if weight.dtype != x.dtype:
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    slope = settings.negative_slope if params.slope is None else params.slope.to(x.dtype)
    return linear(x, weight, bias, settings.activation, slope)


def _inverse(norm: Tensor) -> Tensor:
    """1 / norm, and 0 for rows that have no direction."""
    return torch.threshold(norm, NORM_EPS, math.inf).reciprocal_()


def _class_cosines(wide: Tensor, inverse: Tensor, vectors: Tensor) -> Tensor:
    dots, _ = linear(wide, vectors, None, None, 0.0)  # (B, C)
    return dots.mul_(inverse[:, None])


@without_autocast
def scores(call: Call) -> tuple[Tensor, Tensor]:
    """Layer output (B, O) and its cosines to every class vector (B, C)."""
    y, _ = _activate(call)
    wide = widened(y)
    inverse = _inverse(torch.linalg.vector_norm(wide, dim=1))
    return y, _class_cosines(wide, inverse, widened(call.vectors))


def _statistics(call: Call, y: Tensor, z: Tensor) -> Forward:
    _, _, vectors, target, settings = call
    assert target is not None
    objective = get_objective(settings.objective)
    wide, wide_vectors = widened(y), widened(vectors)
    norm = torch.linalg.vector_norm(wide, dim=1)
    if objective.all_classes:
        cosine = _class_cosines(wide, _inverse(norm), wide_vectors)
    else:
        own = torch.embedding(wide_vectors, target)  # (B, O)
        cosine = own.mul_(wide).sum(dim=1).mul_(_inverse(norm))
    loss = objective.loss(cosine, target, settings.scale).mean()
    kept = z if get_activation(settings.activation).needs_input else y.new_empty(0)
    return Forward(loss, y, kept, norm, cosine)


@without_autocast
def forward(call: Call) -> Forward:
    """y = phi(x W^T + b), its row norms and cosines, and the mean loss."""
    return _statistics(call, *_activate(call))


def _output_gradient(call: Call, saved: Forward, grad_loss: Tensor | None) -> Tensor:
    """dL/dy (B, O) = (sum_j q_j v_j - <q, c> y/|y|) / |y| in two passes, from q = dL/dcosine."""
    _, _, vectors, target, settings = call
    assert target is not None
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


def _through_activation(call: Call, dy: Tensor, y: Tensor, z: Tensor) -> _Rows:
    """dL/dz in the memory of dy; `z` where phi' needs it."""
    params, settings = call.params, call.settings
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
def backward(call: Call, saved: Forward, grad_loss: Tensor | None = None) -> Gradient:
    """Gradients of grad_loss * loss (None: 1) for weight, bias and slope, from what `forward` saved."""
    x, params = call.x, call.params
    dy = _output_gradient(call, saved, grad_loss)
    rows = _through_activation(call, dy, saved.y, saved.pre_activation)
    dweight = product(narrowed(rows.dz, x.dtype), x).to(params.weight.dtype)
    dbias = None if params.bias is None else rows.dbias.to(params.bias.dtype)
    return Gradient(dweight, dbias, rows.dslope)


def _forward_and_rows(call: Call) -> tuple[Tensor, Tensor, _Rows]:
    """Loss (), y (B, O) and the gradients between the two products of a fused step."""
    assert call.target is not None
    y, z = _activate(call)
    done = step_rows(widened(y), widened(call.vectors), call.target, call.settings)
    if done is None:
        saved = _statistics(call, y, z)
        loss, dy = saved.loss, _output_gradient(call, saved, None)
    elif done.activated:
        return done.loss, y, _Rows(done.gradient, done.total, None)
    else:
        loss, dy = done.loss, done.gradient
    return loss, y, _through_activation(call, dy, y, z)


def _small_step(call: Call, step: Step[Buffers]) -> tuple[Tensor, Tensor] | None:
    """The whole step as one compiled call, where that fits."""
    x, params, vectors, target, settings = call
    layer = steps.Planned(params, vectors, settings, step.rule, step.first, step.second)
    if not (fits(x) and len(x) and steps.fits(layer, len(x))):
        return None
    assert target is not None
    number = 0.0 if step.number is None else float(step.number)
    rate = rates_of(step.rule, float(step.lr), number)
    losses, y = steps.run([layer], x, target.contiguous(), [len(x)], [rate])
    return losses.reshape(()), y


@without_autocast
def step_(call: Call, step: Step[Buffers]) -> tuple[Tensor, Tensor]:
    """Forward, closed-form gradient, update in place: loss () and y (B, O), both from before it."""
    x, params = call.x, call.params
    small = _small_step(call, step)
    if small is not None:
        return small
    loss, y, rows = _forward_and_rows(call)
    update_product_(params.weight, narrowed(rows.dz, x.dtype), x, step_of(step, 0))
    if params.bias is not None:
        fused_update_(params.bias, rows.dbias.to(params.bias.dtype), step_of(step, 1))
    if params.slope is not None and rows.dslope is not None:
        fused_update_(params.slope, rows.dslope, step_of(step, 2))
    return loss, y
