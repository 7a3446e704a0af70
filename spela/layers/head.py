"""The hidden layer of a block's head.

Axes: B batch, F numbers that are read out, H outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spela.layers.initial import set_values

__all__ = ["HeadHidden"]


class HeadHidden(nn.Module):
    """A linear layer without bias, layer norm and LeakyReLU.

    Layer norm, not batch norm: a head may score in training mode, learn from one sample and see a part of a
    batch, and its answers stay a function of the sample alone.

    Args:
        in_features: F.
        out_features: H.
        device: Where it lives.
        dtype: Of its parameters; None: torch's default dtype. Other inputs are converted to it.

    Shape:
        (B, F) -> (B, H).

    Source: Belilovsky, Eickenberg and Oyallon 2019 (arXiv 1812.11446): heads with hidden layers let early
    layers serve later ones.

    Example:
        >>> layer = HeadHidden(4, 3)
        >>> layer.reset_parameters()
        >>> layer(torch.randn(5, 4)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        empty = torch.empty(out_features, in_features, device=device, dtype=dtype)
        self.weight = nn.Parameter(empty)
        self.norm = nn.LayerNorm(out_features, device=device, dtype=dtype)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights, U(+-1 / sqrt(F)), on the generator's device, and put the norm back.

        Args:
            generator: Their source; None: torch's default one.
        """
        bound = float(self.weight.shape[1]) ** -0.5
        where = "cpu" if generator is None else generator.device
        draw = torch.empty(self.weight.shape, dtype=torch.float32, device=where)
        set_values(self, "weight", draw.uniform_(-bound, bound, generator=generator))
        self.norm.reset_parameters()

    def forward(self, rows: Tensor) -> Tensor:
        """Outputs (B, H) of rows (B, F)."""
        z = nn.functional.linear(rows.to(self.weight.dtype), self.weight)
        return nn.functional.leaky_relu(self.norm(z), 0.01)
