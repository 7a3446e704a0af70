"""The compiled passes over maps (`windows.c`), where built and fitting.

Axes: B batch, K kernels, H, W map, Ho, Wo pooled map.
"""

from __future__ import annotations

import contextlib
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Found", "is_built", "scatter_to_maxima_", "turn_", "window_maxima"]

_windows: Any = None
with contextlib.suppress(ImportError):  # no compiler was there at installation
    _windows = import_module("spela_kernels.pooling._windows")

_SIZES = (2, 3)  # the windows that `windows.c` is compiled for


class Found(NamedTuple):
    """What `window_maxima` reads off a map in one pass."""

    maxima: Tensor  # (B, K, Ho, Wo), channels last
    mean: Tensor  # (K,) of the whole map
    variance: Tensor  # (K,) biased


def is_built() -> bool:
    """Whether the compiled passes were built at installation.

    Example:
        >>> is_built() in (True, False)
        True
    """
    return _windows is not None


def _runs_on(*tensors: Tensor) -> bool:
    return _windows is not None and all(
        t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors
    )


def window_maxima(maps: Tensor, window: int) -> Found | None:
    """Maxima of a map's windows and the moments of the whole map.

    Args:
        maps: (B, K, H, W) float32, channels last in memory, H and W >= window.
        window: Size and stride of the windows.

    Returns:
        A `Found`, or None where the pass was not built or does not fit.

    Source: torch.nn.functional.max_pool2d, torch.nn.functional.batch_norm.

    Example:
        >>> found = window_maxima(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), 2)
        >>> found is None or (found.maxima.item(), found.mean.item(), found.variance.item())
        (6.0, 3.0, 3.5)
    """
    last = maps.is_contiguous(memory_format=torch.channels_last)
    if window not in _SIZES or not last or not _runs_on(maps):
        return None
    batch, kernels, height, width = maps.shape
    centre = maps[0, :, 0, 0].contiguous()
    pooled = maps.new_empty(batch, height // window, width // window, kernels)
    shares = maps.new_empty(batch, 2, kernels, dtype=torch.float64)
    scratch = maps.new_empty(batch, 2, kernels)
    _windows.window_maxima(
        maps.data_ptr(), centre.data_ptr(), pooled.data_ptr(), shares.data_ptr(),
        scratch.data_ptr(), batch, height, width, kernels, window, torch.get_num_threads(),
    )  # fmt: skip
    first, second = shares.sum(dim=0) / (batch * height * width)  # about `centre`
    mean, variance = centre + first, second - first * first
    return Found(pooled.permute(0, 3, 1, 2), mean.float(), variance.float())


def scatter_to_maxima_(
    maps: Tensor, window: int, dmaxima: Tensor, slope: Tensor | None, offset: Tensor | None
) -> None:
    """maps = slope * maps + offset, and dmaxima on top where `window_maxima` took its maxima; in place.

    Args:
        maps: (B, K, H, W) as `window_maxima` was given it.
        window: Likewise.
        dmaxima: (B, K, Ho, Wo).
        slope, offset: (K,), or both None: nothing stays of the map.
    """
    batch, kernels, height, width = maps.shape
    dmaxima = dmaxima.contiguous(memory_format=torch.channels_last)
    slope, offset = (
        maps.new_zeros(kernels) if t is None else t.contiguous() for t in (slope, offset)
    )
    _windows.scatter_to_maxima(
        maps.data_ptr(), dmaxima.data_ptr(), slope.data_ptr(), offset.data_ptr(),
        batch, height, width, kernels, window, torch.get_num_threads(),
    )  # fmt: skip


def turn_(out: Tensor, source: Tensor) -> bool:
    """out = source with its last two axes exchanged, for matrices whose rows may lie far apart.

    Args:
        out: (B, N, M) float32, last axis packed; written.
        source: (B, M, N) likewise.

    Returns:
        Whether it was done: False where the pass was not built or does not fit.

    Example:
        >>> out = torch.empty(1, 2, 1)
        >>> turn_(out, torch.tensor([[[1.0, 2.0]]])) in (True, False)
        True
    """
    if not _runs_on(out, source) or out.stride(2) != 1 or source.stride(2) != 1:
        return False
    _windows.turn(
        source.data_ptr(), *source.stride()[:2], out.data_ptr(), *out.stride()[:2], *source.shape,
        torch.get_num_threads(),
    )  # fmt: skip
    return True
