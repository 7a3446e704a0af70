"""Max pooling and the two memory orders of a map, by compiled passes (`compiled.py`) or operators of torch.

A convolution runs fastest with channels last in memory, (B, H, W, K); the projection is one product a kernel and
takes kernels first, (K, B, H * W). Axes: B batch, K kernels, H, W map, Ho, Wo pooled map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spela_kernels.pooling import compiled

__all__ = ["Maxima", "channels_last", "kernels_first", "scatter_to_maxima_", "window_maxima"]


class Maxima(NamedTuple):
    """Maxima of a map's windows, and what was found on the way."""

    values: Tensor  # (B, K, Ho, Wo), channels last
    where: Tensor | None  # like it: their places in H * W; None: the compiled pass finds them again
    moments: (
        tuple[Tensor, Tensor] | None
    )  # mean (K,) and variance (K,) of the map, where it gave them


def window_maxima(maps: Tensor, window: int) -> Maxima:
    """Max pooling as in torch, remembered for `scatter_to_maxima_`.

    Args:
        maps: (B, K, H, W), channels last in memory.
        window: Size and stride of the windows; pixels that fill none are left out.

    Returns:
        A `Maxima`.

    Source: torch.nn.functional.max_pool2d.

    Example:
        >>> window_maxima(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), 2).values
        tensor([[[[6.]]]])
    """
    found = compiled.window_maxima(maps, window)
    if found is not None:
        return Maxima(found.maxima, None, (found.mean, found.variance))
    values, where = torch.nn.functional.max_pool2d(maps, window, return_indices=True)
    return Maxima(values, where, None)


def scatter_to_maxima_(
    maps: Tensor,
    window: int,
    where: Tensor | None,
    dmaxima: Tensor,
    slope: Tensor | None,
    offset: Tensor | None,
) -> None:
    """maps = slope * maps + offset, and dmaxima on top where the maxima were; in place.

    Args:
        maps: (B, K, H, W) as `window_maxima` was given it.
        window: Likewise.
        where: Its `where`.
        dmaxima: (B, K, Ho, Wo) what the maxima get.
        slope, offset: (K,), or both None: nothing stays of the map.

    Example:
        >>> maps, one = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), torch.ones(1)
        >>> where = window_maxima(maps, 2).where
        >>> scatter_to_maxima_(maps, 2, where, torch.tensor([[[[0.5]]]]), one, one)
        >>> maps
        tensor([[[[2.0000, 3.0000],
                  [4.0000, 7.5000]]]])
    """
    if where is None:
        compiled.scatter_to_maxima_(maps, window, dmaxima, slope, offset)
        return
    if slope is None or offset is None:
        maps.zero_()
    else:
        torch.addcmul(offset[:, None, None], maps, slope[:, None, None], out=maps)
    own_memory = maps.permute(0, 2, 3, 1).view(len(maps), -1, maps.shape[1])
    own_memory.scatter_add_(1, _positions_first(where), _positions_first(dmaxima))


def _positions_first(maps: Tensor) -> Tensor:
    """(B, K, H, W) as (B, H * W, K): the order in which scattering into last channels is fast."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def kernels_first(maps: Tensor) -> Tensor:
    """Maps as rows, with kernels first in memory.

    Args:
        maps: (B, K, H, W), any strides.

    Returns:
        (B, K, H * W), a view of memory in the order (K, B, H * W).

    Example:
        >>> kernels_first(torch.zeros(2, 3, 4, 5)).stride()
        (20, 40, 1)
    """
    batch, kernels, height, width = maps.shape
    rows = maps.new_empty(kernels, batch, height * width).transpose(0, 1)
    last = maps.is_contiguous(memory_format=torch.channels_last)
    if not (last and compiled.turn_(rows, _positions_first(maps))):
        rows.copy_(maps.flatten(2))
    return rows


def channels_last(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Rows as maps, with channels last in memory: the way back from `kernels_first`.

    Args:
        rows: (B, K, H * W), any strides.
        size: (H, W).

    Returns:
        (B, K, H, W), channels last in memory.

    Example:
        >>> channels_last(torch.zeros(2, 3, 20), (4, 5)).stride()
        (60, 1, 15, 3)
    """
    batch, kernels, length = rows.shape
    positions = rows.new_empty(batch, length, kernels)
    if not compiled.turn_(positions, rows):
        positions.copy_(rows.mT)
    return positions.unflatten(1, size).permute(0, 3, 1, 2)
