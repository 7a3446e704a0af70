"""The optimizer's part of an exported step: its rule, and its state as named tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spela.layers.contract import FusedOptimizer
from spela.optim import LocalAdam, LocalSGD
from spela_kernels.rules import AdamRule, SgdRule, Step, update_

__all__ = ["Update", "optimizer_state", "update_of"]


@dataclass(frozen=True)
class Update:
    """An update rule over tensors by name, with state `NAME.momentum_buffer`, or `NAME.step` and so on.

    Attributes:
        rule: The hyper-parameters, apart from the learning rate.
    """

    rule: SgdRule | AdamRule

    @property
    def name(self) -> str:
        """sgd or adam."""
        return "sgd" if isinstance(self.rule, SgdRule) else "adam"

    def fresh_state(self, name: str, parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter before its first step: zeros."""
        if isinstance(self.rule, AdamRule):
            return {
                f"{name}.step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                f"{name}.exp_avg": torch.zeros_like(parameter, requires_grad=False),
                f"{name}.exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }
        if self.rule.momentum == 0:
            return {}
        return {f"{name}.momentum_buffer": torch.zeros_like(parameter, requires_grad=False)}

    def __call__(
        self, name: str, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], lr: Tensor
    ) -> None:
        """One update in place, of the parameter and of its entries in `state`."""
        if isinstance(self.rule, SgdRule):
            step = Step(self.rule, lr, state.get(f"{name}.momentum_buffer"), None)
        else:
            count = state[f"{name}.step"].add_(1)
            moments = state[f"{name}.exp_avg"], state[f"{name}.exp_avg_sq"]
            step = Step(self.rule, lr, *moments, count)
        update_(parameter, gradient, step)


def update_of(optimizer: torch.optim.Optimizer) -> Update:
    """The rule of an optimizer.

    Raises:
        ValueError: If it is neither `LocalSGD` nor `LocalAdam`, or has several parameter groups.

    Example:
        >>> update_of(LocalSGD(nn.Linear(2, 2).parameters(), momentum=0.9)).rule.momentum
        0.9
    """
    if len(optimizer.param_groups) != 1:
        raise ValueError(
            f"a training step is exported with one parameter group, got {len(optimizer.param_groups)}"
        )
    group = optimizer.param_groups[0]
    if isinstance(optimizer, FusedOptimizer) and not optimizer.can_fuse(group["params"][:1]):
        raise ValueError(
            "a training step is exported by the plain rule of its optimizer: leave maximize, dampening, "
            "amsgrad, decoupled_weight_decay and differentiable out"
        )
    if isinstance(optimizer, LocalSGD):
        return Update(SgdRule(group["momentum"], group["weight_decay"], group["nesterov"]))
    if isinstance(optimizer, LocalAdam):
        beta1, beta2 = group["betas"]
        return Update(AdamRule(beta1, beta2, group["eps"], group["weight_decay"]))
    raise ValueError(
        f"a training step is exported with sgd or adam (LocalSGD, LocalAdam), got "
        f"{type(optimizer).__name__}"
    )


def optimizer_state(
    optimizer: torch.optim.Optimizer, update: Update, parameters: dict[str, nn.Parameter]
) -> dict[str, Tensor]:
    """What the optimizer remembers of the parameters, zeros where it has not stepped yet."""
    state: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        fresh = update.fresh_state(name, parameter)
        kept = optimizer.state.get(parameter, {})
        for key, zeros in fresh.items():
            value = kept.get(key.removeprefix(f"{name}."))
            state[key] = zeros if value is None else value.detach().to(zeros.dtype)
    return state
