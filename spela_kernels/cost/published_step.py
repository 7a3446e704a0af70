"""Steps of a layer and of a projection as published, in eager PyTorch: the rivals of costs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["published_projection_step", "published_step"]


def published_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    vectors: Tensor,
    target: Tensor,
    *,
    optimizer: str = "sgd",
    lr: float = 0.1,
    objective: str = "log",
    scale: float = 20.0,
    foreach: bool | None = None,
    compiled: bool = False,
) -> Callable[[], Tensor]:
    """One SPELA step through autograd and torch.optim, ready to be called again and again.

    Args:
        x: (B, I) layer input.
        weight: (O, I), updated by every call.
        bias: (O,) or None, likewise.
        vectors: (C, O) unit class vectors.
        target: (B,) int64 labels.
        optimizer: sgd or adam, of torch.optim.
        lr: Learning rate.
        objective: log, log(2 - c) of the label's cosine; or softmax, cross-entropy of all cosines.
        scale: Factor of the cosines in `softmax`.
        foreach: torch.optim's choice of implementation; None leaves it to torch.
        compiled: Whether torch.compile takes the loss, its gradient and the optimizer's step.

    Returns:
        A function that takes one step and returns the loss () from before it.

    Raises:
        ValueError: If the optimizer or objective is none of these.

    Source: TMLR 2025, Algorithm 1, and the authors' notebooks.

    Example:
        >>> eye = torch.eye(2)
        >>> step = published_step(eye, eye.clone(), None, eye, torch.tensor([0, 1]))
        >>> step()
        tensor(0.)
    """
    if optimizer not in ("sgd", "adam") or objective not in ("log", "softmax"):
        raise ValueError(
            f"the published step knows sgd or adam, log or softmax; got {optimizer!r}, {objective!r}"
        )
    # Of the same storage, so that the caller's tensors are updated but keep their flags.
    weight = weight.detach().requires_grad_()
    bias = None if bias is None else bias.detach().requires_grad_()
    parameters = [p for p in (weight, bias) if p is not None]
    rule = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
    rival = rule(parameters, lr=lr, foreach=foreach)

    def loss_of(x: Tensor, target: Tensor) -> Tensor:
        y = torch.nn.functional.leaky_relu(torch.nn.functional.linear(x, weight, bias), 1e-3)
        if objective == "log":
            cosine = torch.nn.functional.cosine_similarity(y, vectors[target], dim=1)
            return torch.log(2 - cosine).mean()
        scores = torch.nn.functional.normalize(y, dim=1) @ vectors.T
        return torch.nn.functional.cross_entropy(scale * scores, target)

    forward, update = loss_of, rival.step
    if compiled:
        # Of this shape alone: after another one torch would compile for all.
        forward = torch.compile(loss_of, dynamic=False)
        update = torch.compile(rival.step, dynamic=False)

    def step() -> Tensor:
        loss = forward(x, target)
        loss.backward()
        update()
        rival.zero_grad()  # frees the gradients
        return loss.detach()

    return step


def published_projection_step(
    z: Tensor,
    projection: Tensor,
    vectors: Tensor,
    groups: Tensor,
    target: Tensor,
) -> Callable[[], Tensor]:
    """One step of a grouped projection through autograd and torch.optim.SGD, objective `mse`.

    One batched product for all kernels, where the authors' code copies the projections for every sample.

    Args:
        z: (B, K, D) pooled maps, which get a gradient too.
        projection: (K, D, d), updated by every call.
        vectors: (K, G, d) unit group vectors.
        groups: (K, C) int64, each class's group.
        target: (B,) int64 labels.

    Returns:
        A function that takes one step and returns the loss () from before it.

    Source: the authors' CNN notebooks.

    Example:
        >>> z, eye = torch.eye(2)[None], torch.eye(2).expand(2, 2, 2)
        >>> groups, target = torch.tensor([[0, 1], [1, 0]]), torch.tensor([0])
        >>> published_projection_step(z, eye.clone(), eye, groups, target)()
        tensor(0.)
    """
    z = z.detach().requires_grad_()
    projection = projection.detach().requires_grad_()
    rival = torch.optim.SGD([projection], lr=0.1, foreach=True)
    kernel = torch.arange(len(groups), device=groups.device)

    def step() -> Tensor:
        p = torch.bmm(z.transpose(0, 1), projection).transpose(0, 1)
        own = vectors[kernel, groups[:, target].T]  # (B, K, d)
        loss = (1 - torch.nn.functional.cosine_similarity(p, own, dim=2)).square().mean()
        loss.backward()
        rival.step()
        rival.zero_grad()  # frees the gradients
        z.grad = None
        return loss.detach()

    return step
