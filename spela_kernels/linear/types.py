"""The tuples that travel between the linear op and its back-ends."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Forward", "Gradient", "Parameters"]


class Parameters(NamedTuple):
    """A layer's parameters, or an optimizer buffer for each of them."""

    weight: Tensor  # (O, I)
    bias: Tensor | None  # (O,)
    slope: Tensor | None  # (1,), prelu only


class Forward(NamedTuple):
    """What a forward leaves behind; `pre_activation` is empty unless phi' needs it."""

    loss: Tensor  # ()
    y: Tensor  # (B, O)
    pre_activation: Tensor  # (B, O) or (0,)
    norm: Tensor  # (B,)
    cosine: Tensor  # (B,) to the label's vector, or (B, C) for all-class objectives


class Gradient(NamedTuple):
    """Gradients, shaped like the parameters they belong to."""

    weight: Tensor
    bias: Tensor | None
    slope: Tensor | None
