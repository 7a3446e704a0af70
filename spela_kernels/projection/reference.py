"""The grouped projection's mathematics in plain PyTorch: the oracle the other back-ends are judged by.

    p_bk = z_bk P_k ;  s_bkj = cos(p_bk, u_kj) ;  S_bc = mean_k s_{b,k,groups[k,c]}

Source: the authors' CNN notebooks. Every gradient is the closed form; autograd is not used. Norms, cosines,
losses and gradient rows are computed in at least float32; the products with P in the dtype of z, which may
be 16 bits under a float32 P, batched over kernels: nothing of size (B, K, D, d) or (B, K, C, d) ever exists.

Axes: B batch, K kernels, D pooled map size, d symmetric dimension, G groups, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spela_kernels.cosines import cosine_gradient, narrowed, unit_rows, widened
from spela_kernels.objectives import get_objective
from spela_kernels.precision import without_autocast
from spela_kernels.projection.types import Call, Forward, Gradient
from spela_kernels.rules import Step, update_

__all__ = ["backward", "backward_rows", "forward", "scores", "step_"]


def _by_kernel(rows: Tensor, matrices: Tensor) -> Tensor:
    """(B, K, m) rows times (K, m, n) matrices: (B, K, n)."""
    return torch.bmm(rows.transpose(0, 1), matrices).transpose(0, 1).contiguous()


def _membership(groups: Tensor, vectors: Tensor) -> Tensor:
    """(K*G, C): 1/K where class c is in group j of kernel k, so that s @ it is the class score."""
    kernels, count = vectors.shape[:2]
    member = groups[:, None, :] == torch.arange(count, device=groups.device)[:, None]  # (K, G, C)
    return widened(member.to(vectors.dtype)).flatten(0, 1) / kernels


def _label_vectors(vectors: Tensor, groups: Tensor, target: Tensor) -> Tensor:
    """The vector of the label's group in every kernel: (B, K, d)."""
    kernel = torch.arange(groups.shape[0], device=groups.device)
    return widened(vectors)[kernel, groups[:, target].T]


@without_autocast
def scores(call: Call) -> Tensor:
    """Class scores (B, C): cosines to the classes' vectors, averaged over kernels."""
    z, projection, vectors, groups, _, _ = call
    unit, _ = unit_rows(widened(_by_kernel(z, projection.to(z.dtype))))
    cosine = _by_kernel(unit, widened(vectors).mT)  # (B, K, G)
    return cosine.flatten(1) @ _membership(groups, vectors)


@without_autocast
def forward(call: Call) -> Forward:
    """p = z P, its norms and cosines, and the mean loss."""
    z, projection, vectors, groups, target, settings = call
    assert target is not None
    objective = get_objective(settings.objective)
    p = _by_kernel(z, projection.to(z.dtype))
    unit, norm = unit_rows(widened(p))
    if objective.all_classes:
        cosine = _by_kernel(unit, widened(vectors).mT)  # (B, K, G)
        compared = cosine.flatten(1) @ _membership(groups, vectors)  # (B, C)
    else:
        cosine = (unit * _label_vectors(vectors, groups, target)).sum(dim=-1)  # (B, K)
        compared = cosine
    loss = objective.loss(compared, target, settings.scale).mean()
    return Forward(loss, p, norm, cosine)


@without_autocast
def backward_rows(call: Call, saved: Forward, grad_loss: Tensor | None = None) -> Tensor:
    """Gradient of grad_loss * loss (None: 1) for p (B, K, d), from what `forward` saved."""
    z, _, vectors, groups, target, settings = call
    assert target is not None
    objective, cosine = get_objective(settings.objective), saved.cosine
    factor = 1.0 if grad_loss is None else grad_loss
    if objective.all_classes:
        member = _membership(groups, vectors)
        q = objective.derivative(cosine.flatten(1) @ member, target, settings.scale)  # (B, C)
        q = (q * factor / z.shape[0] @ member.T).view_as(cosine)  # (B, K, G)
        pull, drift = _by_kernel(q, widened(vectors)), (q * cosine).sum(dim=-1)
    else:
        q = objective.derivative(cosine, target, settings.scale) * factor / cosine.numel()  # (B, K)
        pull, drift = q[..., None] * _label_vectors(vectors, groups, target), q * cosine
    return narrowed(cosine_gradient(pull, drift, widened(saved.p), saved.norm), z.dtype)


@without_autocast
def backward(call: Call, saved: Forward, grad_loss: Tensor | None = None) -> Gradient:
    """Gradients of grad_loss * loss (None: 1) for z and the projection, from what `forward` saved."""
    z, projection = call.z, call.projection
    dp = backward_rows(call, saved, grad_loss)  # (B, K, d)
    dprojection = torch.bmm(z.permute(1, 2, 0), dp.transpose(0, 1)).to(projection.dtype)
    return Gradient(_by_kernel(dp, projection.to(z.dtype).mT), dprojection)


def step_(call: Call, step: Step[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Forward, closed-form gradient, update in place: loss () and dz (B, K, D), both from before it."""
    saved = forward(call)
    gradient = backward(call, saved)
    update_(call.projection, gradient.projection, step)
    return saved.loss, gradient.z
