"""RowNorm, between layers: a layer's input does not depend on the scale of the output before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spela_kernels.linear.steps import norm_fits, norm_rows

__all__ = ["RowNorm"]


class RowNorm(nn.Module):
    """Scale each row to a fixed L2 norm: x / max(|x|, 1e-12) * norm, with |x| in the dtype of x.

    Args:
        norm: "unit" (norm 1: the `paper` recipe) or "rms" (norm sqrt(features), every feature of
            order one: the `best` recipe).

    Shape:
        (B, I) -> (B, I); rows of zeros stay zeros, and rows whose squares overflow (|x| from 1.8e19 on in
        float32) become zeros.

    Raises:
        ValueError: If `norm` is neither.

    Source: arXiv v2, Algorithm 1, normalises every layer's input to norm 1.

    Example:
        >>> RowNorm("unit")(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """

    def __init__(self, norm: str = "rms") -> None:
        super().__init__()
        if norm not in ("unit", "rms"):
            raise ValueError(f"`norm` must be 'unit' or 'rms', got {norm!r}")
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Scale the rows of x."""
        if norm_fits(x):
            return norm_rows(x, self.length(x.shape[1]))
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
        return x * (self.length(x.shape[-1]) / length)

    def length(self, features: int) -> float:
        """What rows of so many features are scaled to."""
        return features**0.5 if self.norm == "rms" else 1.0

    def extra_repr(self) -> str:
        """The target norm."""
        return f"norm={self.norm!r}"
