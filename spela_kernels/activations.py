"""The activations phi of a SPELA layer and their derivatives.

Where phi' follows from the output y, the pre-activation z need not be kept (`needs_input` False).
Adding an activation is one row of `ACTIVATIONS`; `Activation.in_kernels` says who runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ACTIVATIONS", "Activation", "get_activation"]

# The slope of leaky_relu is a number; prelu's is a trainable tensor of shape (1,).
Slope = float | Tensor


@dataclass(frozen=True)
class Activation:
    """An elementwise function and its derivative.

    Attributes:
        name: The name users pass.
        needs_input: True: `derivative` takes z. False: it takes y = phi(z).
        forward: (z, slope) -> y, any shape.
        derivative: (z or y, slope) -> phi'(z), same shape.
        in_kernels: Whether the kernels hold these very functions under this name. A row without is run by
            its functions, on the CPU and by the reference; `auto` then passes over Triton.
    """

    name: str
    needs_input: bool
    forward: Callable[[Tensor, Slope], Tensor]
    derivative: Callable[[Tensor, Slope], Tensor]
    in_kernels: bool = False


def _leaky(z: Tensor, slope: Slope) -> Tensor:
    return torch.where(z > 0, z, slope * z)


def _leaky_derivative(v: Tensor, slope: Slope) -> Tensor:
    return torch.where(v > 0, torch.ones_like(v), slope * torch.ones_like(v))


def _gelu_derivative(z: Tensor, slope: Slope) -> Tensor:
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * density


ACTIVATIONS: dict[str, Activation] = {
    row.name: row
    for row in (
        Activation("leaky_relu", False, _leaky, _leaky_derivative, in_kernels=True),
        Activation(
            "relu",
            False,
            lambda z, slope: z.relu(),
            lambda y, slope: (y > 0).to(y.dtype),
            in_kernels=True,
        ),
        Activation(
            "tanh", False, lambda z, slope: z.tanh(), lambda y, slope: 1 - y * y, in_kernels=True
        ),
        # For z <= 0, y = exp(z) - 1, so phi' = exp(z) = y + 1 (alpha = 1, torch's default).
        Activation(
            "elu",
            False,
            lambda z, slope: torch.nn.functional.elu(z),
            lambda y, slope: torch.where(y > 0, torch.ones_like(y), y + 1),
            in_kernels=True,
        ),
        Activation(
            "gelu",
            True,
            lambda z, slope: torch.nn.functional.gelu(z),
            _gelu_derivative,
            in_kernels=True,
        ),
        Activation(
            "identity",
            False,
            lambda z, slope: z.clone(),
            lambda y, slope: torch.ones_like(y),
            in_kernels=True,
        ),
        # A learnt slope may turn negative, and then the sign of y no longer tells the sign of z.
        Activation("prelu", True, _leaky, _leaky_derivative, in_kernels=True),
    )
}
"""Every activation by name, each with its derivative."""


def get_activation(name: str) -> Activation:
    """Look an activation up by name.

    Args:
        name: One of the keys of `ACTIVATIONS`.

    Returns:
        The table's row.

    Raises:
        ValueError: If `name` is not in the table.

    Example:
        >>> get_activation("tanh").derivative(torch.tensor([0.0]), 0.0)
        tensor([1.])
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}: use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
