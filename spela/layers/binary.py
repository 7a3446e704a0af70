"""Binary weights with latent ones behind them, as a parametrisation of any linear layer."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["BinaryWeight", "with_binary_weight"]

Linear = TypeVar("Linear", bound=nn.Linear)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, latent: Tensor, scale: float, limit: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(latent)
        ctx.scale, ctx.limit = scale, limit
        return torch.where(latent < 0, -scale, scale).to(latent.dtype)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        (latent,) = ctx.saved_tensors
        (gradient,) = gradients
        # A step against the gradient that would lead further out than the limit changes no sign.
        outwards = (latent.abs() >= ctx.limit) & (latent * gradient < 0)
        return gradient.masked_fill(outwards, 0.0), None, None


class BinaryWeight(nn.Module):
    """W_b = scale * sign(W): the layer computes with two values a weight, the latent W learns.

    The gradient of W_b is W's (straight through), except where it would push a latent weight further
    out than `limit`: there a weight would need ever more steps to change its sign. sign(0) is 1.

    Args:
        in_features: I; scale is sqrt(2 / I), the standard deviation of the layer's initial weights
            U(+-sqrt(6 / I)), so that binary outputs have the size of the full ones; limit is their bound.

    Shape:
        (O, I) -> (O, I).

    Source: Courbariaux, Bengio, David, "BinaryConnect", NeurIPS 2015; the scale is ours.

    Example:
        >>> BinaryWeight(2)(torch.tensor([[0.3, -0.2]]))
        tensor([[ 1., -1.]])
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.scale = math.sqrt(2 / in_features)
        self.limit = math.sqrt(6 / in_features)

    def forward(self, latent: Tensor) -> Tensor:
        """The binary weight of a latent one."""
        return _StraightThrough.apply(latent, self.scale, self.limit)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A latent weight that starts from given values: those themselves."""
        return weight


def with_binary_weight(layer: Linear) -> Linear:
    """The same layer, whose `weight` is binary from now on and whose parameter is the latent weight.

    Its local step is the unfused one: the fused ops would update the binary weight, not the latent.

    Args:
        layer: A linear layer, changed in place.

    Returns:
        `layer`.

    Example:
        >>> from spela.layers import SpelaLinear
        >>> layer = with_binary_weight(SpelaLinear(8, 4, num_classes=3))
        >>> layer.weight.unique()
        tensor([-0.5000,  0.5000], grad_fn=<Unique2Backward0>)
    """
    parametrize.register_parametrization(layer, "weight", BinaryWeight(layer.in_features))
    return layer
