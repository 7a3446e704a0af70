"""What a block's head sees of its output: maps pooled, tokens averaged, rows as they are.

Axes: B batch, C channels, H, W map, T tokens, E their width, F numbers that are read out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["check_readable", "other_batches", "pooled_size", "read_out"]


def check_readable(y: object, source: str) -> Tensor:
    """Refuse what no head can read.

    Args:
        y: What a module returned.
        source: That module, for the message.

    Returns:
        `y`, a tensor with 2 to 4 axes and numbers in it.

    Raises:
        TypeError: If it is no tensor of floats.
        ValueError: If it has other axes or is empty.
    """
    if not isinstance(y, Tensor) or not y.is_floating_point():
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(
            f"{source} must return one float tensor, got {kind}: cut the network where one tensor passes"
        )
    if y.dim() not in (2, 3, 4) or 0 in y.shape[1:]:
        raise ValueError(
            f"{source} must return maps (B, C, H, W), tokens (B, T, E) or rows (B, F), got {tuple(y.shape)}"
        )
    return y


def other_batches(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two batches of its rows, of two sizes that it does not have: what stays with them is the batch axis.

    Example:
        >>> [len(batch) for batch in other_batches(torch.ones(2, 5))]
        [3, 4]
    """
    few = x[:2].detach().repeat(4, *(1 for _ in x.shape[1:]))
    first, second = [size for size in (2, 3, 4) if size != len(x)][:2]
    return few[:first], few[:second]


def pooled_size(shape: Sequence[int], most: int) -> tuple[int, int] | None:
    """The largest map of at most `most` numbers over all channels, and at least one number a channel.

    Args:
        shape: (C, H, W), (T, E) or (F,).
        most: Numbers to read out of maps; tokens and rows give E and F of them.

    Returns:
        (H', W'), each at most as large as H and W; None for tokens and rows.

    Example:
        >>> pooled_size((64, 32, 32), 256), pooled_size((512, 4, 4), 256), pooled_size((300,), 256)
        ((2, 2), (1, 1), None)
    """
    if len(shape) != 3:
        return None
    channels, height, width = shape

    def numbers(side: int) -> int:
        return channels * min(height, side) * min(width, side)

    side = max(bisect_right(range(1, max(height, width) + 1), most, key=numbers), 1)
    return min(height, side), min(width, side)


def read_out(y: Tensor, pooled: tuple[int, int] | None) -> Tensor:
    """A block's output as one row a sample.

    Args:
        y: (B, C, H, W), (B, T, E) or (B, F).
        pooled: Of maps, what they are averaged down to, by torch's adaptive pooling: where H' does not
            divide H, neighbouring windows share a line of pixels.

    Returns:
        (B, F): C * H' * W', E or F numbers.

    Example:
        >>> read_out(torch.ones(2, 3, 8, 8), (2, 2)).shape, read_out(torch.ones(2, 7, 5), None).shape
        (torch.Size([2, 12]), torch.Size([2, 5]))
    """
    if y.dim() == 4:
        maps = nn.functional.adaptive_avg_pool2d(y, pooled or (1, 1))
        if maps.requires_grad and y.is_contiguous(memory_format=torch.channels_last):
            maps = _ChannelsLast.apply(maps)
        return maps.flatten(1)
    return y.mean(dim=1) if y.dim() == 3 else y


class _ChannelsLast(torch.autograd.Function):
    """The same maps, whose gradient comes with channels last.

    That of flattened maps comes with channels first: the pooling's would have the size of the whole map, and
    every operation below it would copy one that lies across what it saved.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        return maps.view_as(maps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous(memory_format=torch.channels_last)
