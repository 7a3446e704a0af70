"""The update rules of the fused steps, and their arithmetic in plain PyTorch: torch.optim's SGD and Adam."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["AdamRule", "SgdRule", "Step", "adam_update_", "sgd_update_"]


class SgdRule(NamedTuple):
    """torch.optim.SGD with dampening 0."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False


class AdamRule(NamedTuple):
    """torch.optim.Adam: weight decay is added to the gradient."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Step:
    """What an update kernel does with a gradient; the defaults store it."""

    kind: str = "gradient"
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
    lr: Tensor | None = None
    step: Tensor | None = None
    grad_loss: Tensor | None = None

    @property
    def constants(self) -> tuple[Any, ...]:
        """The kernel's constexprs; log(beta) because 1 - beta^step cancels in fp32."""
        logs = (math.log(max(beta, 1e-30)) for beta in (self.beta1, self.beta2))
        return (
            self.kind, self.momentum, self.weight_decay, self.nesterov,
            self.beta1, self.beta2, *logs, self.eps,
        )  # fmt: skip


def sgd_update_(
    parameter: Tensor, gradient: Tensor, momentum_buffer: Tensor | None, lr: Tensor, rule: SgdRule
) -> None:
    """One SGD update in place.

    Args:
        parameter: Any shape, updated.
        gradient: Shaped like it.
        momentum_buffer: Shaped like it, updated; None: plain SGD.
        lr: () learning rate.
        rule: The other hyper-parameters.

    Source: torch.optim.SGD.

    Example:
        >>> import torch
        >>> parameter = torch.tensor([1.0])
        >>> sgd_update_(parameter, torch.tensor([2.0]), None, torch.tensor(0.25), SgdRule())
        >>> parameter
        tensor([0.5000])
    """
    if rule.weight_decay != 0:
        gradient = gradient + rule.weight_decay * parameter
    if momentum_buffer is not None:
        momentum_buffer.mul_(rule.momentum).add_(gradient)
        gradient = gradient + rule.momentum * momentum_buffer if rule.nesterov else momentum_buffer
    parameter.sub_(lr * gradient)


def adam_update_(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: Tensor,
    rule: AdamRule,
) -> None:
    """One Adam update in place.

    Args:
        parameter: Any shape, updated.
        gradient: Shaped like it.
        exp_avg, exp_avg_sq: The two moments, shaped like it, updated.
        step: () number of this step, counted from 1.
        lr: () learning rate.
        rule: The other hyper-parameters.

    Source: torch.optim.Adam.

    Example:
        >>> import torch
        >>> parameter, first, second = torch.ones(1), torch.zeros(1), torch.zeros(1)
        >>> one, lr = torch.tensor(1.0), torch.tensor(0.25)
        >>> adam_update_(parameter, torch.tensor([2.0]), first, second, one, lr, AdamRule())
        >>> parameter
        tensor([0.7500])
    """
    exact_step = step.double()  # 0-d: widens nothing, and keeps float64 steps exact
    correction1, correction2 = 1 - rule.beta1**exact_step, 1 - rule.beta2**exact_step
    if rule.weight_decay != 0:
        gradient = gradient + rule.weight_decay * parameter
    exp_avg.mul_(rule.beta1).add_(gradient, alpha=1 - rule.beta1)
    exp_avg_sq.mul_(rule.beta2).addcmul_(gradient, gradient, value=1 - rule.beta2)
    denominator = (exp_avg_sq / correction2).sqrt_().add_(rule.eps)
    parameter.sub_(((lr / correction1) * exp_avg).div_(denominator))
