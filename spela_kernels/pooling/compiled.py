"""The compiled passes over maps (`windows.c`), where built and fitting.

Axes: B batch, K kernels, H, W map, Ho, Wo pooled map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spela_kernels.cpu.sources import built_module
from spela_kernels.pooling.types import Active, Descent, Maxima, Normal
from spela_kernels.precision import runs_as_written

__all__ = ["activate", "descend", "is_built", "scatter_to_maxima_", "window_maxima"]

_windows: Any = built_module("spela_kernels.pooling._windows")

_SIZES = (2, 3)  # the windows that `windows.c` is compiled for


def is_built() -> bool:
    """Whether the compiled passes were built at installation.

    Example:
        >>> is_built() in (True, False)
        True
    """
    return _windows is not None


def _fits(normal: Normal | None, *maps: Tensor) -> bool:
    return (
        _windows is not None
        and runs_as_written(*maps)
        and all(t.dtype == torch.float32 for t in (*maps, *(normal or ())))
        and all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
    )


def _addresses(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in tensors)


def _empty_map(like: Tensor, height: int, width: int) -> Tensor:
    batch, kernels = like.shape[:2]
    return like.new_empty(batch, height, width, kernels).permute(0, 3, 1, 2)


def _empty_sums(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Room for two sums an image and kernel, and scratch: (B, 2, K)."""
    shape = (maps.shape[0], 2, maps.shape[1])
    return maps.new_empty(shape, dtype=torch.float64), maps.new_empty(shape)


def _no_normal(x: Tensor) -> Normal:
    """The affine map of a layer without batch norm: x as it is."""
    ones, zeros = x.new_ones(x.shape[1]), x.new_zeros(x.shape[1])
    return Normal(mean=zeros, inverse=ones, scale=ones, shift=zeros)


def window_maxima(maps: Tensor, window: int) -> Maxima | None:
    """Maxima of a map's windows and the moments of the whole map.

    Args:
        maps: (B, K, H, W) float32, channels last in memory, H and W >= window.
        window: Size and stride of the windows.

    Returns:
        A `Maxima` without places, or None where the pass was not built or does not fit.

    Source: torch.nn.functional.max_pool2d, torch.nn.functional.batch_norm.

    Example:
        >>> found = window_maxima(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), 2)
        >>> found is None or found.moments == (torch.tensor([3.0]), torch.tensor([3.5]))
        True
    """
    if window not in _SIZES or not _fits(None, maps):
        return None
    batch, kernels, height, width = maps.shape
    values = _empty_map(maps, height // window, width // window)
    centre = maps[0].mean((1, 2))  # sums about a value near the mean do not cancel
    sums, scratch = _empty_sums(maps)
    _windows.window_maxima(
        *_addresses(maps, centre, values, sums, scratch),
        batch, height, width, kernels, window, torch.get_num_threads(),
    )  # fmt: skip
    first, second = sums.sum(dim=0) / (batch * height * width)
    mean, variance = centre + first, (second - first * first).clamp_min(0)
    return Maxima(values, None, (mean.float(), variance.float()))


def activate(x: Tensor, normal: Normal | None, negative_slope: float) -> Active | None:
    """leaky_relu(scale * x + shift), in both memory orders.

    Args:
        x: (B, K, Ho, Wo) float32, channels last in memory.
        normal: Batch norm, or None.
        negative_slope: Of LeakyReLU.

    Returns:
        An `Active`, or None where the pass was not built or does not fit.

    Example:
        >>> done = activate(torch.tensor([[[[1.0, -2.0]]]]), None, 0.5)
        >>> done is None or done.rows.tolist() == [[[1.0, -1.0]]]
        True
    """
    if not _fits(normal, x):
        return None
    batch, kernels, height, width = x.shape
    own = normal or _no_normal(x)
    y, rows = _empty_map(x, height, width), x.new_empty(kernels, batch, height * width)
    _windows.activate(
        *_addresses(x, own.scale, own.shift), negative_slope, *_addresses(y, rows),
        batch, height * width, kernels, torch.get_num_threads(),
    )  # fmt: skip
    return Active(y, y, rows.transpose(0, 1))


def descend(
    dy: Tensor, y: Tensor, x: Tensor, normal: Normal | None, negative_slope: float
) -> Descent | None:
    """The way back through `activate`.

    Args:
        dy: (B, K, Ho * Wo) gradient of y, last axis packed.
        y: (B, K, Ho, Wo) what `activate` gave.
        x, normal, negative_slope: What it was given.

    Returns:
        A `Descent`, or None where the pass was not built or does not fit.

    Source: Ioffe and Szegedy 2015.

    Example:
        >>> x = torch.tensor([[[[1.0, -2.0]]]])
        >>> done = descend(torch.ones(1, 1, 2), x, x, None, 0.5)
        >>> done is None or done.dx.tolist() == [[[[1.0, 0.5]]]]
        True
    """
    if not _fits(normal, x, y) or dy.dtype != torch.float32 or dy.stride(2) != 1:
        return None
    batch, kernels, height, width = x.shape
    own = normal or _no_normal(x)
    dx = _empty_map(x, height, width)
    sums, scratch = _empty_sums(x)
    _windows.descend(
        *_addresses(x, y, dy), *dy.stride()[:2], *_addresses(own.scale, own.mean), negative_slope,
        *_addresses(dx, sums, scratch), batch, height * width, kernels, torch.get_num_threads(),
    )  # fmt: skip
    if normal is None:
        return Descent(dx, None, None)
    total, along = sums.sum(dim=0).float()
    return Descent(dx, along * normal.inverse, total)


def scatter_to_maxima_(
    maps: Tensor, window: int, dmaxima: Tensor, slope: Tensor | None, offset: Tensor | None
) -> None:
    """maps = slope * maps + offset, and dmaxima on top where `window_maxima` took its maxima; in place.

    Args:
        maps: (B, K, H, W) as `window_maxima` was given it.
        window: Likewise.
        dmaxima: (B, K, Ho, Wo) float32, channels last in memory.
        slope, offset: (K,), or both None: nothing stays of the map.

    Example:
        >>> maps = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
        >>> if is_built():
        ...     scatter_to_maxima_(maps, 2, torch.ones(1, 1, 1, 1), None, None)
        ...     assert maps.tolist() == [[[[0.0, 0.0], [0.0, 1.0]]]]
    """
    batch, kernels, height, width = maps.shape
    if slope is None or offset is None:
        slope = offset = maps.new_zeros(kernels)
    _windows.scatter_to_maxima(
        *_addresses(maps, dmaxima, slope, offset),
        batch, height, width, kernels, window, torch.get_num_threads(),
    )  # fmt: skip
