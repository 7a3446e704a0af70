"""The tuples that travel between the projection op and its back-ends."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Forward", "Gradient"]


class Forward(NamedTuple):
    """What a forward leaves behind."""

    loss: Tensor  # ()
    p: Tensor  # (B, K, d) projected activations
    norm: Tensor  # (B, K) their lengths
    cosine: Tensor  # (B, K) to the label's vector, or (B, K, G) for all-class objectives


class Gradient(NamedTuple):
    """Gradients, shaped like the tensors they belong to."""

    z: Tensor  # (B, K, D)
    projection: Tensor  # (K, D, d)
