"""The tuples that travel between the projection op and its back-ends.

Axes: B batch, K kernels, D pooled map size, d symmetric dimension, G groups, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from spela_kernels.contracts import Settings

__all__ = ["Call", "Forward", "Gradient"]


class Call(NamedTuple):
    """A projection and the batch it is given: what a back-end's functions take."""

    z: Tensor  # (B, K, D), in the projection's dtype or in 16 bits under a float32 one
    projection: Tensor  # (K, D, d)
    vectors: Tensor  # (K, G, d)
    groups: Tensor  # (K, C) int64
    target: Tensor | None  # (B,) int64 labels; None where scores alone are asked for
    settings: Settings


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
