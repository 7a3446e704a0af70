"""The linear layer's mathematics in plain PyTorch: the oracle the other back-ends are judged by.

Spec sections 3 and 5. Every gradient is the closed form; autograd is not used. Norms, cosines, losses
and gradient rows are computed in at least float32; the two matrix products in the input's own dtype, which
may be 16 bits under float32 parameters.

Axes: B batch, I in, O out, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spela_kernels.activations import get_activation
from spela_kernels.contracts import Settings
from spela_kernels.linear.types import AdamRule, Forward, Gradient, Parameters, SgdRule
from spela_kernels.objectives import get_objective
from spela_kernels.precision import without_autocast

__all__ = ["NORM_EPS", "adam_step_", "backward", "forward", "scores", "sgd_step_"]

# Rows shorter than this have no direction: their cosines are 0 and they contribute no gradient.
NORM_EPS = 1e-12


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _activate(x: Tensor, params: Parameters, settings: Settings) -> tuple[Tensor, Tensor]:
    bias = None if params.bias is None else params.bias.to(x.dtype)
    z = torch.nn.functional.linear(x, params.weight.to(x.dtype), bias)  # (B, O)
    slope = settings.negative_slope if params.slope is None else params.slope.to(x.dtype)
    return get_activation(settings.activation).forward(z, slope), z


def _unit_rows(y: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(y, dim=1)  # (B,)
    return y / norm.clamp_min(NORM_EPS)[:, None], norm


@without_autocast
def scores(
    x: Tensor, params: Parameters, vectors: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Layer output (B, O) and its cosines to every class vector (B, C)."""
    y, _ = _activate(x, params, settings)
    unit, _ = _unit_rows(_wide(y))
    return y, unit @ _wide(vectors).T


@without_autocast
def forward(
    x: Tensor, params: Parameters, vectors: Tensor, target: Tensor, settings: Settings
) -> Forward:
    """y = phi(x W^T + b), its row norms and cosines, and the mean loss."""
    objective = get_objective(settings.objective)
    y, z = _activate(x, params, settings)
    unit, norm = _unit_rows(_wide(y))
    if objective.all_classes:
        cosine = unit @ _wide(vectors).T  # (B, C)
    else:
        cosine = (unit * _wide(vectors)[target]).sum(dim=1)  # (B,)
    loss = objective.loss(cosine, target, settings.scale).mean()
    kept = z if get_activation(settings.activation).needs_input else z.new_empty(0)
    return Forward(loss, y, kept, norm, cosine)


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
    objective, phi = get_objective(settings.objective), get_activation(settings.activation)
    y, cosine, norm, wide_vectors = _wide(saved.y), saved.cosine, saved.norm, _wide(vectors)
    q = objective.derivative(cosine, target, settings.scale) / y.shape[0]
    if grad_loss is not None:
        q = q * grad_loss
    if objective.all_classes:
        pull = q @ wide_vectors  # (B, O)
        drift = (q * cosine).sum(dim=1)  # (B,)
    else:
        pull = q[:, None] * wide_vectors[target]
        drift = q * cosine
    inverse = torch.where(norm > NORM_EPS, 1 / norm, torch.zeros_like(norm))[:, None]  # (B, 1)
    dy = (pull - drift[:, None] * y * inverse) * inverse  # (B, O)
    slope = settings.negative_slope if params.slope is None else _wide(params.slope)
    dz = dy * phi.derivative(_wide(saved.pre_activation) if phi.needs_input else y, slope)
    dbias = None if params.bias is None else dz.sum(dim=0).to(params.bias.dtype)
    dslope = None
    if params.slope is not None:
        dslope = (dy * _wide(saved.pre_activation).clamp_max(0)).sum()
        dslope = dslope.to(params.slope.dtype).reshape(1)
    dweight = (dz.to(x.dtype).T @ x).to(params.weight.dtype)
    return Gradient(dweight, dbias, dslope)


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
    saved = forward(x, params, vectors, target, settings)
    gradients = backward(x, params, vectors, target, settings, saved)
    buffers = momentum_buffers or (None,) * len(params)
    for parameter, gradient, buffer in zip(params, gradients, buffers, strict=True):
        if parameter is None or gradient is None:
            continue
        if rule.weight_decay != 0:
            gradient = gradient + rule.weight_decay * parameter
        if buffer is not None:
            buffer.mul_(rule.momentum).add_(gradient)
            gradient = gradient + rule.momentum * buffer if rule.nesterov else buffer
        parameter.sub_(lr * gradient)
    return saved.loss, saved.y


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
    saved = forward(x, params, vectors, target, settings)
    gradients = backward(x, params, vectors, target, settings, saved)
    exact_step = step.double()  # 0-d: widens nothing, and keeps float64 steps exact
    correction1, correction2 = 1 - rule.beta1**exact_step, 1 - rule.beta2**exact_step
    for parameter, gradient, exp_avg, exp_avg_sq in zip(
        params, gradients, exp_avgs, exp_avg_sqs, strict=True
    ):
        if parameter is None or gradient is None or exp_avg is None or exp_avg_sq is None:
            continue
        if rule.weight_decay != 0:
            gradient = gradient + rule.weight_decay * parameter
        exp_avg.mul_(rule.beta1).add_(gradient, alpha=1 - rule.beta1)
        exp_avg_sq.mul_(rule.beta2).addcmul_(gradient, gradient, value=1 - rule.beta2)
        denominator = (exp_avg_sq / correction2).sqrt_().add_(rule.eps)
        parameter.sub_((lr / correction1) * exp_avg / denominator)
    return saved.loss, saved.y
