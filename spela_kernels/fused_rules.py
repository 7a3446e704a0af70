"""Adam by torch's own fused kernel: one pass over memory that `rules.adam_update_` crosses ten times."""

from __future__ import annotations

import torch
from torch import Tensor

from spela_kernels.rules import AdamRule, adam_update_

__all__ = ["fused_adam_update_"]


def fused_adam_update_(
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
        parameter, gradient, exp_avg, exp_avg_sq, step, lr, rule: As in `rules.adam_update_`, which runs
            where dtypes or strides differ, for torch's kernel walks the four side by side, and on the meta
            device, which it does not know.

    Example:
        >>> import torch
        >>> parameter, first, second = torch.ones(1), torch.zeros(1), torch.zeros(1)
        >>> one, lr = torch.tensor(1.0), torch.tensor(0.25)
        >>> fused_adam_update_(parameter, torch.tensor([2.0]), first, second, one, lr, AdamRule())
        >>> parameter
        tensor([0.7500])
    """
    tensors = (parameter, gradient, exp_avg, exp_avg_sq)
    if parameter.is_meta or any(
        t.dtype != parameter.dtype or t.stride() != parameter.stride() for t in tensors
    ):
        return adam_update_(parameter, gradient, exp_avg, exp_avg_sq, step, lr, rule)
    # The op behind torch.optim.Adam(fused=True); torch's function around it takes longer than a small layer.
    torch._fused_adam_(
        [parameter],
        [gradient],
        [exp_avg],
        [exp_avg_sq],
        [],
        [step.float()],
        lr=lr,
        beta1=rule.beta1,
        beta2=rule.beta2,
        weight_decay=rule.weight_decay,
        eps=rule.eps,
        amsgrad=False,
        maximize=False,
    )
    return None
