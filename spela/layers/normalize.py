"""Scales of what a layer takes: RowNorm between layers, Standardize in front of the first."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spela_kernels.linear.steps import norm_fits, norm_rows

__all__ = ["RowNorm", "Standardize", "not_floating"]

_ROWS = 4096  # samples at a time: bounds the temporaries


def not_floating(x: Tensor) -> TypeError:
    """The error for numbers on a scale of their own, as pixels in uint8."""
    return TypeError(f"`x` is {x.dtype}: convert it, pixels by x.float() / 255")


class RowNorm(nn.Module):
    """Scale each row to a fixed L2 norm: x / max(|x|, 1e-12) * norm, with |x| in the dtype of x, of
    float16 in float32, as 1e-12 is 0 there.

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
        """Scale the rows of x.

        Raises:
            TypeError: If x is not floating point.
        """
        if norm_fits(x):
            return norm_rows(x, self.length(x.shape[1]))
        if not x.is_floating_point():
            raise not_floating(x)
        wide = x.float() if x.dtype == torch.float16 else x
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp_min(1e-12)
        return (x * (self.length(x.shape[-1]) / length)).to(x.dtype)

    def length(self, features: int) -> float:
        """What rows of so many features are scaled to."""
        return features**0.5 if self.norm == "rms" else 1.0

    def extra_repr(self) -> str:
        """The target norm."""
        return f"norm={self.norm!r}"


class Standardize(nn.Module):
    """Centre each feature and divide it by its deviation, both of the samples that `fit` saw.

    In front of a network's first layer the scaling goes wherever the network goes: into checkpoints, exported
    programs and predictions of raw features. Nothing of it is trained; before `fit` it changes nothing.

    Args:
        sample_shape: Of one sample: (F,), each feature by its own; or (C, H, W), each channel by its own.
        device: Of the buffers.
        dtype: Of the buffers; None: torch's default.

    Shape:
        (B, *sample_shape), floating point -> the same.

    Raises:
        ValueError: If `sample_shape` is neither.

    Source: LeCun, Bottou, Orr, Mueller, "Efficient BackProp", 1998, Section 4.3.

    Example:
        >>> scale = Standardize((2,)).fit(torch.tensor([[1.0, 30.0], [3.0, 30.0]]))
        >>> scale(torch.tensor([[3.0, 31.0]]))
        tensor([[1., 1.]])
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        sample_shape: Sequence[int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.sample_shape = tuple(sample_shape)
        if len(self.sample_shape) not in (1, 3) or min(self.sample_shape) < 1:
            raise ValueError(f"`sample_shape` must be (F,) or (C, H, W), got {self.sample_shape}")
        shape = (self.sample_shape[0],) + (1,) * (len(self.sample_shape) - 1)
        self.register_buffer("mean", torch.zeros(shape, device=device, dtype=dtype))
        self.register_buffer("deviation", torch.ones(shape, device=device, dtype=dtype))

    @torch.no_grad()
    def fit(self, x: Tensor) -> Standardize:
        """Take mean and deviation from samples; a feature that never changes is only centred.

        Args:
            x: (N, *sample_shape); uint8 pixels count as 0..1, which is what the network is given (`prepare`).

        Returns:
            The module.

        Raises:
            ValueError: If the shape does not fit, or there is no sample.
        """
        if tuple(x.shape[1:]) != self.sample_shape or len(x) == 0:
            raise ValueError(
                f"`x` must be (N, {', '.join(map(str, self.sample_shape))}) with at least one sample, got "
                f"shape {tuple(x.shape)}"
            )
        axes = [0, *range(2, x.dim())]
        count = len(x) * math.prod(x.shape[2:])
        full_scale = 255.0 if x.dtype == torch.uint8 else 1.0
        # On the CPU, which has float64: the same bits whatever the device.
        mean = torch.zeros_like(self.mean, dtype=torch.float64, device="cpu")
        squares = torch.zeros_like(mean)
        for part in x.split(_ROWS):
            mean += (part.cpu().double() / full_scale).sum(axes).view_as(mean) / count
        for part in x.split(_ROWS):
            centred = part.cpu().double() / full_scale - mean
            squares += centred.square().sum(axes).view_as(mean) / count
        deviation = squares.sqrt()
        # What rounding alone leaves of a constant is no deviation, and what would be 0 here divides nothing.
        least = torch.finfo(self.deviation.dtype).tiny
        deviation[deviation <= (1e-7 * mean.abs()).clamp_min(least)] = 1.0
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Scale a batch.

        Raises:
            TypeError: If x is not floating point, as pixels in uint8, which `fit` takes as 0..1.
            ValueError: If it has other axes, or another number of features or channels.
        """
        if x.dim() != 1 + len(self.sample_shape) or x.shape[1] != self.sample_shape[0]:
            raise ValueError(
                f"`x` must be (B, {', '.join(map(str, self.sample_shape))}), got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise not_floating(x)
        deviation = self.deviation
        if deviation.dtype == torch.float16:  # where a small deviation became 0 when it was cast
            deviation = deviation.masked_fill(deviation == 0, 1.0)
        return (x - self.mean) / deviation

    def extra_repr(self) -> str:
        """The samples' shape."""
        return f"sample_shape={self.sample_shape}"
