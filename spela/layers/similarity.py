"""The similarity loss: outputs of two samples are to be as similar as the vectors of their classes.

Axes: B batch, C channels, H, W map, T tokens, E their width, F numbers, d dimension of the class vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spela.layers.initial import set_values
from spela_kernels.cosines import unit_rows, widened

__all__ = ["Similarity", "check_compared"]


def check_compared(samples: int) -> None:
    """Refuse a batch that a similarity loss compares with nothing.

    Raises:
        ValueError: If it is of one sample, or of none.
    """
    if samples < 2:
        raise ValueError("the similarity loss compares samples: train on batches of at least 2")


class Similarity(nn.Module):
    """Mean squared difference of two Gram matrices (B, B): of what a block makes, and of its labels' vectors.

    The block's output goes through a convolution (3 x 3, zeros padded) or, tokens and rows, a linear map,
    both without bias and trained with the block; of maps and tokens the deviation over positions is what
    counts, or, where there is one position, its values. Each of these rows is centred (its mean is taken out)
    and normalised. For a simplex the matrix of the labels is 1 for the same class and -1 / (C - 1) else.

    Args:
        shape: Of one sample of the output: (C, H, W), (T, E) or (F,).
        generator: Source of the first weights, U(+-1 / sqrt(inputs)); None: torch's default one.
        device: Where they live.
        dtype: Theirs; None: torch's default dtype.

    Source: Nøkland and Eidnes 2019 (arXiv 1901.06656), section 2.2, with SPELA's vectors as targets;
    each sample's row is centred as in the authors' released code.

    Example:
        >>> loss = Similarity((4, 8, 8))(torch.randn(5, 4, 8, 8), torch.eye(3)[torch.tensor([0, 1, 2, 0, 1])])
        >>> loss.shape
        torch.Size([])
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = shape[0] if len(shape) == 3 else shape[-1]
        size = (width, width, 3, 3) if len(shape) == 3 else (width, width)
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew, on the generator's device; nothing on the meta device."""
        if self.weight.is_meta:
            return
        bound = 1 / math.sqrt(self.weight[0].numel())
        where = "cpu" if generator is None else generator.device
        draw = torch.empty(self.weight.shape, dtype=torch.float32, device=where)
        set_values(self, "weight", draw.uniform_(-bound, bound, generator=generator))

    def forward(self, y: Tensor, vectors: Tensor) -> Tensor:
        """The loss.

        Args:
            y: (B, C, H, W), (B, T, E) or (B, F), B at least 2.
            vectors: (B, d) unit vector of each sample's class.

        Returns:
            loss (), in at least float32.

        Raises:
            ValueError: For a batch of one sample, which is similar to nothing.
        """
        check_compared(len(y))
        y = y.to(self.weight.dtype)
        if y.dim() == 4:
            made = nn.functional.conv2d(y, self.weight, padding=1).flatten(2)
        else:
            made = nn.functional.linear(y, self.weight)
        rows = widened(made)
        if rows.dim() == 3:
            places = 2 if y.dim() == 4 else 1
            one = rows.shape[places] == 1  # which has no deviation
            rows = rows.squeeze(places) if one else rows.std(dim=places, correction=0)
        unit, _ = unit_rows(rows - rows.mean(dim=1, keepdim=True))
        target = widened(vectors)
        return (unit @ unit.T - target @ target.T).square().mean()
