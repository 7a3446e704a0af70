"""What a block's projection sees of the body's output, through trainable layers where there are such.

Axes: B batch, C channels, H, W map, T tokens, E their width, F numbers that are read out.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spela.layers.initial import set_values
from spela.layers.readout import pooled_size, read_out

__all__ = ["Head", "HeadConvolution", "HeadHidden"]

_SIDE = 8  # of the maps that a head's convolution gets: its share of a step stays small


class Head(nn.Module):
    """Maps averaged down, tokens averaged, rows as they are; layers before and behind that where asked for.

    Args:
        shape: (C, H, W), (T, E) or (F,) of the body's output for a sample.
        readout: Most numbers to average maps down to, but at least one a channel.
        channels: Of the convolution, which only maps have; 0: none.
        hidden: Outputs of the hidden layer; 0: none.
        device: Where it lives.
        dtype: Of its parameters; None: torch's default dtype.

    Shape:
        (B, C, H, W), (B, T, E) or (B, F) -> (B, `width`).

    Attributes:
        width: Numbers a sample that come out.

    Source: Belilovsky, Eickenberg and Oyallon 2019 (arXiv 1812.11446): heads with hidden layers let early
    layers serve later ones.

    Example:
        >>> head = Head((16, 32, 32), readout=256, channels=8, hidden=12)
        >>> head.reset_parameters()
        >>> head(torch.randn(5, 16, 32, 32)).shape
        torch.Size([5, 12])
    """

    convolution: HeadConvolution | None
    hidden: HeadHidden | None

    def __init__(
        self,
        shape: Sequence[int],
        readout: int,
        channels: int = 0,
        hidden: int = 0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.convolution = self.hidden = None
        maps = self.shape
        if channels and len(maps) == 3:
            self.convolution = HeadConvolution(maps[0], channels, device=device, dtype=dtype)
            maps = (channels, min(_SIDE, maps[1]), min(_SIDE, maps[2]))
        self.pooled = pooled_size(maps, readout)
        self.width = maps[-1] if self.pooled is None else maps[0] * math.prod(self.pooled)
        if hidden:
            self.hidden = HeadHidden(self.width, hidden, device=device, dtype=dtype)
            self.width = hidden

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights, and put the norms back.

        Args:
            generator: Their source; None: torch's default one.
        """
        for layer in (self.convolution, self.hidden):
            if layer is not None:
                layer.reset_parameters(generator)

    def forward(self, y: Tensor) -> Tensor:
        """For learning: in training mode batch norms go by the batch's statistics.

        Raises:
            ValueError: If y is no such output.
        """
        y = self._checked(y)
        if self.convolution is not None:
            y = self.convolution(y)
        rows = read_out(y, self.pooled)
        return rows if self.hidden is None else self.hidden(rows).flatten(1)

    def answer(self, y: Tensor) -> Tensor:
        """For scoring: by the running statistics in every mode; none moves.

        Raises:
            ValueError: If y is no such output.
        """
        y = self._checked(y)
        if self.convolution is not None:
            y = self.convolution.answer(y)
        rows = read_out(y, self.pooled)
        return rows if self.hidden is None else self.hidden.answer(rows).flatten(1)

    def _checked(self, y: Tensor) -> Tensor:
        width = self.shape[0 if len(self.shape) == 3 else -1]
        if y.dim() != 1 + len(self.shape) or y.shape[1 if y.dim() == 4 else -1] != width:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(
                f"outputs of this block must be like (B, {expected}), got {tuple(y.shape)}"
            )
        return y


class _Layer(nn.Module, ABC):
    """Weights without a bias, batch norm and LeakyReLU.

    Batch norm, because it takes out what all samples have in common, which a cosine would otherwise see
    first.
    """

    kernel: tuple[int, ...] = ()  # of a convolution

    def __init__(self, inputs: int, outputs: int, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *self.kernel, **factory))
        self.norm = nn.BatchNorm2d(outputs, **factory)

    @abstractmethod
    def _product(self, x: Tensor) -> Tensor:
        """Maps (B, outputs, H, W)."""

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights, U(+-1 / sqrt(inputs)), on the generator's device, and put the norm back.

        Args:
            generator: Their source; None: torch's default one.
        """
        bound = self.weight[0].numel() ** -0.5
        where = "cpu" if generator is None else generator.device
        draw = torch.empty(self.weight.shape, dtype=torch.float32, device=where)
        set_values(self, "weight", draw.uniform_(-bound, bound, generator=generator))
        self.norm.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Outputs for learning: in training mode by the batch's statistics.

        One sample alone has none: it is normalised by the running ones, which stay.
        """
        share = self._share()
        samples = len(x) if share is None else share.total
        if self.training and samples == 1:
            return self.answer(x)
        return _activated(self.norm(self._product(x.to(self.weight.dtype))))

    def _share(self) -> Any:
        """This process's part of a joint batch, where processes share one: `spela.distributed`."""
        return getattr(self.norm, "share", None)

    def answer(self, x: Tensor) -> Tensor:
        """Outputs for scoring: by the running statistics in every mode; none moves."""
        norm = self.norm
        missing = norm.running_mean is None  # taken away by whoever wants the batch's own
        if missing and self._share() is not None:
            return _activated(norm(self._product(x.to(self.weight.dtype))))
        return _activated(
            torch.batch_norm(  # torch.nn.functional's refuses one sample by its own statistics
                self._product(x.to(self.weight.dtype)), norm.weight, norm.bias, norm.running_mean,
                norm.running_var, missing, 0.0, norm.eps, torch.backends.cudnn.enabled,
            )
        )  # fmt: skip


def _activated(maps: Tensor) -> Tensor:
    return nn.functional.leaky_relu(maps, 0.01)


class HeadHidden(_Layer):
    """A linear layer without bias, batch norm and LeakyReLU.

    Args:
        inputs: F.
        outputs: H.
        device: Where it lives.
        dtype: Of its parameters; None: torch's default dtype. Other inputs are converted to it.

    Shape:
        (B, F) -> (B, H, 1, 1), maps of one pixel: so that processes which share a batch norm it together, as
        they do maps.

    Example:
        >>> layer = HeadHidden(4, 3)
        >>> layer.reset_parameters()
        >>> layer(torch.randn(5, 4)).shape
        torch.Size([5, 3, 1, 1])
    """

    def _product(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)[:, :, None, None]


class HeadConvolution(_Layer):
    """Maps averaged down to at most 8 x 8, a 3 x 3 convolution without bias, batch norm and LeakyReLU.

    Args:
        inputs: C.
        outputs: K.
        device: Where it lives.
        dtype: Of its parameters; None: torch's default dtype. Other inputs are converted to it.

    Shape:
        (B, C, H, W) -> (B, K, min(8, H), min(8, W)).

    Example:
        >>> layer = HeadConvolution(4, 6)
        >>> layer.reset_parameters()
        >>> layer(torch.randn(5, 4, 32, 5)).shape
        torch.Size([5, 6, 8, 5])
    """

    kernel = (3, 3)

    def _product(self, x: Tensor) -> Tensor:
        size = (min(_SIDE, x.shape[2]), min(_SIDE, x.shape[3]))
        if size != x.shape[2:]:
            x = nn.functional.adaptive_avg_pool2d(x, size)
        return nn.functional.conv2d(x, self.weight, padding=1)
