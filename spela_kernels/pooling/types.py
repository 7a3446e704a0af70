"""The tuples that travel between a convolution block and the passes over its map.

Axes: B batch, K kernels, H, W map of the convolution, Ho, Wo pooled map.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Active", "Descent", "Maxima", "Normal"]


class Maxima(NamedTuple):
    """Maxima of a map's windows, and what was found on the way."""

    values: Tensor  # (B, K, Ho, Wo), channels last
    where: Tensor | None  # like it: their places in H * W; None: the compiled pass finds them again
    moments: (
        tuple[Tensor, Tensor] | None
    )  # mean (K,) and variance (K,) of the map, where it gave them


class Normal(NamedTuple):
    """Batch norm of x as the affine map scale * x + shift; each (K,)."""

    mean: Tensor
    inverse: Tensor  # one over the deviation
    scale: Tensor
    shift: Tensor


class Active(NamedTuple):
    """A map after LeakyReLU."""

    active: Tensor  # what LeakyReLU gave
    y: Tensor  # (B, K, Ho, Wo): the same, or its averages over windows
    rows: Tensor  # (B, K, Ho * Wo) y, kernels first in memory


class Descent(NamedTuple):
    """The way back through LeakyReLU and batch norm, with z = scale * x + shift."""

    dx: Tensor  # like x
    along: Tensor | None  # (K,) sum of dz times the normalised x, None where nothing was normalised
    total: Tensor | None  # (K,) sum of dz
