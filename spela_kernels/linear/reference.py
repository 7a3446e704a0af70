"""The linear layer's mathematics in plain PyTorch: the oracle the other back-ends are judged by.

Source: TMLR 2025, Algorithm 1. Every gradient is the closed form; autograd is not used. Norms,
cosines, losses and gradient rows are computed in at least float32; the two matrix products in the input's
own dtype, which may be 16 bits under float32 parameters.

Axes: B batch, I in, O out, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spela_kernels.activations import get_activation
from spela_kernels.cosines import cosine_gradient, narrowed, unit_rows, widened
from spela_kernels.linear.types import Buffers, Call, Forward, Gradient, step_of
from spela_kernels.objectives import get_objective
from spela_kernels.precision import without_autocast
from spela_kernels.rules import Step, update_

__all__ = ["backward", "forward", "scores", "step_"]


def _activate(call: Call) -> tuple[Tensor, Tensor]:
    x, params, settings = call.x, call.params, call.settings
    bias = None if params.bias is None else params.bias.to(x.dtype)
    z = torch.nn.functional.linear(x, params.weight.to(x.dtype), bias)  # (B, O)
    slope = settings.negative_slope if params.slope is None else params.slope.to(x.dtype)
    return get_activation(settings.activation).forward(z, slope), z


@without_autocast
def scores(call: Call) -> tuple[Tensor, Tensor]:
    """Layer output (B, O) and its cosines to every class vector (B, C)."""
    y, _ = _activate(call)
    unit, _ = unit_rows(widened(y))
    return y, unit @ widened(call.vectors).T


@without_autocast
def forward(call: Call) -> Forward:
    """y = phi(x W^T + b), its row norms and cosines, and the mean loss."""
    _, _, vectors, target, settings = call
    assert target is not None
    objective = get_objective(settings.objective)
    y, z = _activate(call)
    unit, norm = unit_rows(widened(y))
    if objective.all_classes:
        cosine = unit @ widened(vectors).T  # (B, C)
    else:
        cosine = (unit * widened(vectors)[target]).sum(dim=1)  # (B,)
    loss = objective.loss(cosine, target, settings.scale).mean()
    kept = z if get_activation(settings.activation).needs_input else z.new_empty(0)
    return Forward(loss, y, kept, norm, cosine)


@without_autocast
def backward(call: Call, saved: Forward, grad_loss: Tensor | None = None) -> Gradient:
    """Gradients of grad_loss * loss (None: 1) for weight, bias and slope, from what `forward` saved."""
    x, params, vectors, target, settings = call
    assert target is not None
    objective, phi = get_objective(settings.objective), get_activation(settings.activation)
    y, cosine, norm, wide_vectors = widened(saved.y), saved.cosine, saved.norm, widened(vectors)
    q = objective.derivative(cosine, target, settings.scale) / y.shape[0]
    if grad_loss is not None:
        q = q * grad_loss
    if objective.all_classes:
        pull = q @ wide_vectors  # (B, O)
        drift = (q * cosine).sum(dim=1)  # (B,)
    else:
        pull = q[:, None] * wide_vectors[target]
        drift = q * cosine
    dy = cosine_gradient(pull, drift, y, norm)  # (B, O)
    slope = settings.negative_slope if params.slope is None else widened(params.slope)
    dz = dy * phi.derivative(widened(saved.pre_activation) if phi.needs_input else y, slope)
    dbias = None if params.bias is None else dz.sum(dim=0).to(params.bias.dtype)
    dslope = None
    if params.slope is not None:
        dslope = (dy * widened(saved.pre_activation).clamp_max(0)).sum()
        dslope = dslope.to(params.slope.dtype).reshape(1)
    dweight = (narrowed(dz, x.dtype).T @ x).to(params.weight.dtype)
    return Gradient(dweight, dbias, dslope)


def step_(call: Call, step: Step[Buffers]) -> tuple[Tensor, Tensor]:
    """Forward, closed-form gradient, update in place: loss () and y (B, O), both from before it."""
    saved = forward(call)
    for index, gradient in enumerate(backward(call, saved)):
        parameter = call.params[index]
        if parameter is not None and gradient is not None:
            update_(parameter, gradient, step_of(step, index))
    return saved.loss, saved.y
