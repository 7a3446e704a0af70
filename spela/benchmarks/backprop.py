"""A training step of backprop as users write it: the rival in every table of steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["backprop_step"]


def backprop_step(
    net: nn.Module, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer
) -> Callable[[], object]:
    """Cross-entropy of the network's output, its gradient, one update: torch's calls, and no check of ours.

    Args:
        net: Puts out (B, C) logits.
        x: (B, ...) batch.
        target: (B,) int64 labels.
        optimizer: Of the network's parameters.

    Returns:
        The step.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> step = backprop_step(net, torch.ones(4, 3), torch.tensor([0, 1, 1, 1]), optimizer)
        >>> bool((step() > step()).all())
        True
    """

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
