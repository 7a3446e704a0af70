"""The linear layer's public functions: documentation and defaults over the ops.

The same arguments everywhere: x (B, I) layer input; weight (O, I); bias (O,) or None; vectors (C, O) unit
class vectors; target (B,) int64 labels, all on one device in one float dtype. x alone may be in 16 bits under
float32 parameters (mixed precision, what autocast chooses): products and y are then in x's dtype. Losses and
cosines come back in at least float32. Every function raises ValueError for shapes, devices, labels or names
that do not fit and TypeError for dtypes that do not. A row of y that is no longer than 1e-12, or in float32
longer than 1.8e19, has no direction: its cosines are 0 and it contributes no gradient (`cosines.py`). (Where
its products with the class vectors leave float32, too, a back-end may find NaN.) Source: TMLR 2025,
Algorithm 1.
"""

from __future__ import annotations

from torch import Tensor

from spela_kernels.cosines import scalar_like
from spela_kernels.linear.op import adam_op, forward_op, loss_backward_op, loss_op, sgd_op
from spela_kernels.linear.types import Gradient, Parameters
from spela_kernels.precision import autocast_input, recordable, refuse_forward_mode, without_grad
from spela_kernels.rules import check_adam

__all__ = ["linear_adam_", "linear_forward", "linear_gradient", "linear_loss", "linear_sgd_"]


@without_grad
def linear_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, vectors: Tensor,
    *, slope: Tensor | None = None, activation: str = "leaky_relu", negative_slope: float = 1e-3,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Layer output y = phi(x W^T + b) and its cosines to all class vectors; no gradients.

    Args:
        x: (B, I) layer input.
        weight: (O, I).
        bias: (O,) or None.
        vectors: (C, O) unit rows.
        slope: (1,) learnt slope, for `prelu` only.
        activation: A name from `ACTIVATIONS`.
        negative_slope: Slope of leaky_relu below zero, >= 0.

    Returns:
        y (B, O) and scores (B, C); a row shorter than 1e-12, or so long that its squares overflow (1.8e19 in
        float32), has no direction and scores 0 for every class. An empty batch has no scores.

    Example:
        >>> import torch
        >>> eye = torch.eye(2)
        >>> linear_forward(torch.tensor([[3.0, 4.0]]), eye, None, eye)[1]
        tensor([[0.6000, 0.8000]])
    """
    y, scores = forward_op(
        autocast_input(x), weight, bias, slope, vectors, activation, negative_slope, "log", 1.0
    )
    return y, scores


def linear_loss(
    x: Tensor, weight: Tensor, bias: Tensor | None, vectors: Tensor, target: Tensor,
    *, slope: Tensor | None = None, activation: str = "leaky_relu", negative_slope: float = 1e-3,
    objective: str = "log", scale: float = 20.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The local loss, differentiable in weight, bias and slope only, and the layer output.

    Args:
        x: (B, I); never receives a gradient.
        weight, bias, vectors, slope, activation, negative_slope: As in `linear_forward`.
        target: (B,) int64 labels in 0..C-1.
        objective: A name from `OBJECTIVES`.
        scale: Factor of the cosines in `softmax`, > 0.

    Returns:
        loss () mean over the batch, and y (B, O) without a graph.

    Example:
        >>> import torch
        >>> eye, w = torch.eye(2), torch.eye(2, requires_grad=True)
        >>> loss, y = linear_loss(eye, w, None, eye, torch.tensor([0, 1]), objective="cosine")
        >>> loss.item(), y.requires_grad
        (-1.0, False)
    """
    refuse_forward_mode("linear_loss")
    loss, y, *_ = loss_op(
        autocast_input(recordable(x).detach()), weight, bias, slope, recordable(vectors), recordable(target),
        activation, negative_slope, objective, scale,
    )  # fmt: skip
    return loss, y


@without_grad
def linear_gradient(
    x: Tensor, weight: Tensor, bias: Tensor | None, vectors: Tensor, target: Tensor,
    *, slope: Tensor | None = None, activation: str = "leaky_relu", negative_slope: float = 1e-3,
    objective: str = "log", scale: float = 20.0,
) -> tuple[Tensor, Tensor, Gradient]:  # fmt: skip
    """Loss, output and closed-form local gradients, outside autograd.

    Args:
        x, weight, bias, vectors, target, slope, activation, negative_slope, objective, scale: As in
            `linear_loss`.

    Returns:
        loss (), y (B, O), and a `Gradient` (weight (O, I), bias (O,) or None, slope (1,) or None).

    Example:
        >>> import torch
        >>> eye = torch.eye(2)
        >>> x, target = torch.tensor([[1.0, 1.0]]), torch.tensor([0])
        >>> linear_gradient(x, eye, None, eye, target, objective="cosine")[2].weight
        tensor([[-0.3536, -0.3536],
                [ 0.3536,  0.3536]])
    """
    tensors = (autocast_input(x), weight, bias, slope, vectors, target)
    settings = (activation, negative_slope, objective, scale)
    loss, *saved = loss_op(*tensors, *settings)
    dweight, dbias, dslope = loss_backward_op(None, *tensors, *saved, *settings)
    gradient = Gradient(dweight, None if bias is None else dbias, None if slope is None else dslope)
    return loss, saved[0], gradient


@without_grad
def linear_sgd_(
    x: Tensor, weight: Tensor, bias: Tensor | None, vectors: Tensor, target: Tensor,
    lr: float | Tensor,
    *, momentum_buffers: Parameters | None = None, momentum: float = 0.0,
    weight_decay: float = 0.0, nesterov: bool = False, slope: Tensor | None = None,
    activation: str = "leaky_relu", negative_slope: float = 1e-3, objective: str = "log",
    scale: float = 20.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One forward and one SGD step of a layer, in place: torch.optim.SGD's rule with dampening 0.

    Args:
        x, weight, bias, vectors, target, slope, activation, negative_slope, objective, scale: As in
            `linear_loss`; weight, bias and slope are updated.
        lr: Learning rate per mean-sample loss; a 0-d float tensor keeps a schedule from recompiling.
        momentum_buffers: One buffer a parameter (zeros before the first step), updated; None for
            plain SGD.
        momentum: Factor of the old buffer.
        weight_decay: L2 penalty added to the gradient.
        nesterov: Nesterov momentum.

    Returns:
        loss () and y (B, O), both from before the update.

    Example:
        >>> import torch
        >>> w, eye = torch.eye(2), torch.eye(2)
        >>> x, target = torch.tensor([[1.0, 1.0]]), torch.tensor([0])
        >>> loss, y = linear_sgd_(x, w, None, eye, target, 1.0, objective="cosine")
        >>> w
        tensor([[ 1.3536,  0.3536],
                [-0.3536,  0.6464]])
    """
    if momentum_buffers is None and momentum != 0:
        raise ValueError("momentum needs `momentum_buffers`: pass one zero tensor a parameter")
    buffers = momentum_buffers or (None, None, None)
    loss, y = sgd_op(
        autocast_input(x), weight, bias, slope, vectors, target, *buffers, scalar_like(lr, weight),
        momentum, weight_decay, nesterov, activation, negative_slope, objective, scale,
    )  # fmt: skip
    return loss, y


@without_grad
def linear_adam_(
    x: Tensor, weight: Tensor, bias: Tensor | None, vectors: Tensor, target: Tensor,
    lr: float | Tensor,
    *, exp_avgs: Parameters, exp_avg_sqs: Parameters, step: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
    slope: Tensor | None = None, activation: str = "leaky_relu", negative_slope: float = 1e-3,
    objective: str = "log", scale: float = 20.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One forward and one Adam step of a layer, in place: torch.optim.Adam's rule.

    Args:
        x, weight, bias, vectors, target, slope, activation, negative_slope, objective, scale: As in
            `linear_loss`; weight, bias and slope are updated.
        lr: Learning rate, a float or a 0-d float tensor.
        exp_avgs: First moments, one buffer a parameter (zeros before the first step), updated.
        exp_avg_sqs: Second moments, likewise.
        step: Number of this step, counted from 1; a float or a 0-d tensor.
        betas: Decay of the two moments.
        eps: Added to the denominator.
        weight_decay: L2 penalty added to the gradient.

    Returns:
        loss () and y (B, O), both from before the update.

    Example:
        >>> import torch
        >>> w, eye = torch.eye(2), torch.eye(2)
        >>> first, second = (Parameters(torch.zeros(2, 2), None, None) for _ in range(2))
        >>> x, target = torch.tensor([[1.0, 1.0]]), torch.tensor([0])
        >>> _ = linear_adam_(
        ...     x, w, None, eye, target, 0.1, exp_avgs=first, exp_avg_sqs=second, step=1
        ... )
        >>> w
        tensor([[ 1.1000,  0.1000],
                [-0.1000,  0.9000]])
    """
    check_adam(step, betas)
    loss, y = adam_op(
        autocast_input(x), weight, bias, slope, vectors, target, *exp_avgs, *exp_avg_sqs,
        scalar_like(step, weight), scalar_like(lr, weight), *betas, eps, weight_decay,
        activation, negative_slope, objective, scale,
    )  # fmt: skip
    return loss, y
