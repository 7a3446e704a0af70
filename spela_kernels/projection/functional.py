"""The grouped projection's public functions: documentation and defaults over the ops.

The same arguments everywhere: z (B, K, D) pooled activations of K kernels; projection (K, D, d); vectors
(K, G, d) unit rows (kernel k's own g_k first, zeros after them); groups (K, C) int64 group of each class,
0..g_k-1; target (B,) int64 labels, all on one device, the floats in one dtype (z alone may be in 16 bits
under float32: mixed precision, what autocast chooses). Losses and scores come back in at least float32. Every
function raises ValueError for shapes, devices, groups, labels or names that do not fit and TypeError for
dtypes that do not. Source: the authors' CNN notebooks.
"""

from __future__ import annotations

from torch import Tensor

from spela_kernels.cosines import scalar_like
from spela_kernels.precision import autocast_input, recordable, refuse_forward_mode, without_grad
from spela_kernels.projection.op import adam_op, forward_op, loss_backward_op, loss_op, sgd_op
from spela_kernels.projection.types import Gradient
from spela_kernels.rules import check_adam

__all__ = [
    "projection_adam_",
    "projection_forward",
    "projection_gradient",
    "projection_loss",
    "projection_sgd_",
]


@without_grad
def projection_forward(z: Tensor, projection: Tensor, vectors: Tensor, groups: Tensor) -> Tensor:
    """Class scores: the cosine of z_k P_k to the vector of the class's group, mean over k; no gradients.

    Args:
        z: (B, K, D) pooled activations.
        projection: (K, D, d).
        vectors: (K, G, d) unit rows.
        groups: (K, C) int64.

    Returns:
        (B, C); a kernel whose projection is shorter than 1e-12, or so long that its squares overflow (1.8e19
        in float32), adds 0 to every class. An empty batch has no scores.

    Example:
        >>> import torch
        >>> eye = torch.eye(2)[None]
        >>> projection_forward(torch.tensor([[[3.0, 4.0]]]), eye, eye, torch.tensor([[0, 1, 0]]))
        tensor([[0.6000, 0.8000, 0.6000]])
    """
    scores: Tensor = forward_op(autocast_input(z), projection, vectors, groups)
    return scores


def projection_loss(
    z: Tensor, projection: Tensor, vectors: Tensor, groups: Tensor, target: Tensor,
    *, objective: str = "mse", scale: float = 20.0,
) -> Tensor:  # fmt: skip
    """The local loss, differentiable in z and projection: mean over samples and kernels of f(cosine).

    Args:
        z, projection, vectors, groups: As in `projection_forward`.
        target: (B,) int64 labels in 0..C-1.
        objective: A name from `OBJECTIVES`; `softmax` compares the class scores, the others each
            kernel's cosine to the label's vector.
        scale: Factor of the scores in `softmax`, > 0.

    Returns:
        loss ().

    Example:
        >>> import torch
        >>> eye = torch.eye(2)[None]
        >>> z = torch.tensor([[[3.0, 4.0]]], requires_grad=True)
        >>> loss = projection_loss(z, eye, eye, torch.tensor([[0, 1]]), torch.tensor([0]))
        >>> loss.backward()
        >>> z.grad
        tensor([[[-0.1024,  0.0768]]])
    """
    refuse_forward_mode("projection_loss")
    loss: Tensor = loss_op(
        autocast_input(recordable(z)), projection, recordable(vectors), recordable(groups),
        recordable(target), objective, scale,
    )[0]  # fmt: skip
    return loss


@without_grad
def projection_gradient(
    z: Tensor, projection: Tensor, vectors: Tensor, groups: Tensor, target: Tensor,
    *, objective: str = "mse", scale: float = 20.0,
) -> tuple[Tensor, Gradient]:  # fmt: skip
    """Loss and closed-form gradients, outside autograd.

    Args:
        z, projection, vectors, groups, target, objective, scale: As in `projection_loss`.

    Returns:
        loss () and a `Gradient` (z (B, K, D), projection (K, D, d)).

    Example:
        >>> import torch
        >>> eye, z = torch.eye(2)[None], torch.tensor([[[3.0, 4.0]]])
        >>> projection_gradient(z, eye, eye, torch.tensor([[0, 1]]), torch.tensor([0]))[1].z
        tensor([[[-0.1024,  0.0768]]])
    """
    tensors = (autocast_input(z), projection, vectors, groups, target)
    loss, *saved = loss_op(*tensors, objective, scale)
    return loss, Gradient(*loss_backward_op(None, *tensors, *saved, objective, scale))


@without_grad
def projection_sgd_(
    z: Tensor, projection: Tensor, vectors: Tensor, groups: Tensor, target: Tensor,
    lr: float | Tensor,
    *, momentum_buffer: Tensor | None = None, momentum: float = 0.0, weight_decay: float = 0.0,
    nesterov: bool = False, objective: str = "mse", scale: float = 20.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One SGD step of the projection, in place: torch.optim.SGD's rule with dampening 0.

    Args:
        z, projection, vectors, groups, target, objective, scale: As in `projection_loss`;
            projection is updated.
        lr: Learning rate per mean-sample loss; a 0-d float tensor keeps a schedule from recompiling.
        momentum_buffer: (K, D, d), zeros before the first step, updated; None for plain SGD.
        momentum: Factor of the old buffer.
        weight_decay: L2 penalty added to the gradient.
        nesterov: Nesterov momentum.

    Returns:
        loss () and dloss/dz (B, K, D), both from before the update.

    Example:
        >>> import torch
        >>> projection, eye = torch.eye(2)[None], torch.eye(2)[None]
        >>> z, groups = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[0, 1]])
        >>> loss, dz = projection_sgd_(z, projection, eye, groups, torch.tensor([0]), 1.0)
        >>> projection
        tensor([[[ 1.3072, -0.2304],
                 [ 0.4096,  0.6928]]])
    """
    if momentum_buffer is None and momentum != 0:
        raise ValueError("momentum needs `momentum_buffer`: pass zeros shaped like `projection`")
    loss, dz = sgd_op(
        autocast_input(z), projection, vectors, groups, target, momentum_buffer, scalar_like(lr, projection),
        momentum, weight_decay, nesterov, objective, scale,
    )  # fmt: skip
    return loss, dz


@without_grad
def projection_adam_(
    z: Tensor, projection: Tensor, vectors: Tensor, groups: Tensor, target: Tensor,
    lr: float | Tensor,
    *, exp_avg: Tensor, exp_avg_sq: Tensor, step: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
    objective: str = "mse", scale: float = 20.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One Adam step of the projection, in place: torch.optim.Adam's rule.

    Args:
        z, projection, vectors, groups, target, objective, scale: As in `projection_loss`;
            projection is updated.
        lr: Learning rate, a float or a 0-d float tensor.
        exp_avg: (K, D, d) first moment, zeros before the first step, updated.
        exp_avg_sq: Second moment, likewise.
        step: Number of this step, counted from 1; a float or a 0-d tensor.
        betas: Decay of the two moments.
        eps: Added to the denominator.
        weight_decay: L2 penalty added to the gradient.

    Returns:
        loss () and dloss/dz (B, K, D), both from before the update.

    Example:
        >>> import torch
        >>> projection, eye = torch.eye(2)[None], torch.eye(2)[None]
        >>> z, groups = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[0, 1]])
        >>> first, second = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
        >>> _ = projection_adam_(
        ...     z, projection, eye, groups, torch.tensor([0]), 0.1,
        ...     exp_avg=first, exp_avg_sq=second, step=1,
        ... )
        >>> projection
        tensor([[[ 1.1000, -0.1000],
                 [ 0.1000,  0.9000]]])
    """
    check_adam(step, betas)
    loss, dz = adam_op(
        autocast_input(z), projection, vectors, groups, target, exp_avg, exp_avg_sq,
        scalar_like(step, projection), scalar_like(lr, projection), *betas, eps, weight_decay,
        objective, scale,
    )  # fmt: skip
    return loss, dz
