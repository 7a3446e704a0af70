"""What a converted network's last layer starts from: class vectors on the output axes, a drawn direction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["draw_if_zero", "simplex"]


def simplex(num_classes: int) -> Tensor:
    """Class vectors to which the cosines order the classes as the logits do: e_k - 1/C, not normalised.

    In float64 on the CPU whatever torch's defaults are: half precision would round them.
    """
    return torch.eye(num_classes, dtype=torch.float64, device="cpu") - 1 / num_classes


def draw_if_zero(linear: nn.Linear, generator: torch.Generator | None) -> None:
    """Zeros alone give rows without direction, from which nothing is learnt: start as nn.Linear does.

    A bias is a direction, and what is frozen needs none.
    """
    if linear.weight.is_meta or not linear.weight.requires_grad:
        return
    if not linear.weight.any() and (linear.bias is None or not linear.bias.any()):
        bound = linear.in_features**-0.5
        where = "cpu" if generator is None else generator.device
        draw = torch.empty(linear.weight.shape, dtype=torch.float32, device=where)
        linear.weight.copy_(draw.uniform_(-bound, bound, generator=generator))
