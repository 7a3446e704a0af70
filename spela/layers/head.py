"""The hidden layer of a block's head.

Axes: B batch, F numbers that are read out, H outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spela.layers.initial import set_values

__all__ = ["HeadHidden"]


class HeadHidden(nn.Module):
    """A linear layer without bias, batch norm and LeakyReLU.

    Batch norm, because it takes out what all samples have in common, which a cosine would otherwise see
    first.

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
        # Of maps of one pixel: so that processes which share a batch norm it together, as they do maps.
        self.norm = nn.BatchNorm2d(out_features, device=device, dtype=dtype)

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
        """Outputs (B, H) of rows (B, F) for learning: in training mode by the batch's statistics.

        One sample alone has none: it is normalised by the running ones, which stay.
        """
        alone = len(rows) == 1 and type(self.norm) is nn.BatchNorm2d  # not one process's share
        if self.training and alone:
            return self.answer(rows)
        return self._activated(self.norm(self._maps(rows)))

    def answer(self, rows: Tensor) -> Tensor:
        """Outputs (B, H) of rows (B, F) for scoring: by the running statistics in every mode; none moves."""
        norm = self.norm
        missing = norm.running_mean is None  # taken away by whoever wants the batch's own
        return self._activated(
            torch.batch_norm(  # torch.nn.functional's refuses one sample by its own statistics
                self._maps(rows), norm.weight, norm.bias, norm.running_mean, norm.running_var, missing, 0.0,
                norm.eps, torch.backends.cudnn.enabled,
            )
        )  # fmt: skip

    def _maps(self, rows: Tensor) -> Tensor:
        z = nn.functional.linear(rows.to(self.weight.dtype), self.weight)
        return z[:, :, None, None]

    def _activated(self, maps: Tensor) -> Tensor:
        return nn.functional.leaky_relu(maps.flatten(1), 0.01)
