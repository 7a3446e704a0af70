"""From a convolution's map to the rows of the projection and back: compiled passes (`compiled.py`) or torch.

Pooling by maxima comes before the affine map of batch norm and LeakyReLU, pooling by averages after them. A
convolution runs fastest with channels last in memory, (B, H, W, K); the projection is one product a kernel
and takes kernels first, (K, B, Ho * Wo). Axes: B batch, K kernels, H, W map, Ho, Wo pooled map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spela_kernels.cosines import widened
from spela_kernels.pooling import compiled
from spela_kernels.pooling.types import Active, Descent, Maxima, Normal

__all__ = ["activate", "descend", "per_kernel", "scatter_to_maxima_", "window_maxima"]

_aten = torch.ops.aten


def per_kernel(values: Tensor) -> Tensor:
    """(K,) as (K, 1, 1): one value a map.

    Example:
        >>> per_kernel(torch.ones(3)).shape
        torch.Size([3, 1, 1])
    """
    return values[:, None, None]


def _by_position(maps: Tensor) -> Tensor:
    """(B, K, H, W) as (B, H * W, K): the order in which scattering into last channels is fast."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


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
        return found
    values, where = torch.nn.functional.max_pool2d(maps, window, return_indices=True)
    return Maxima(values, where, None)


def activate(x: Tensor, normal: Normal | None, negative_slope: float, average: int = 1) -> Active:
    """leaky_relu(scale * x + shift), and its averages over windows.

    Args:
        x: (B, K, H, W), channels last in memory.
        normal: Batch norm, or None.
        negative_slope: Of LeakyReLU.
        average: Size and stride of the windows that are averaged.

    Returns:
        An `Active`.

    Example:
        >>> activate(torch.tensor([[[[1.0, -2.0]]]]), None, 0.5).rows
        tensor([[[ 1., -1.]]])
    """
    done = compiled.activate(x, normal, negative_slope) if average == 1 else None
    if done is not None:
        return done
    if normal is not None:
        affine = torch.addcmul(per_kernel(normal.shift), x, per_kernel(normal.scale)).to(x.dtype)
        active = torch.nn.functional.leaky_relu_(affine, negative_slope)
    else:
        active = torch.nn.functional.leaky_relu(x, negative_slope)
    y = active if average == 1 else torch.nn.functional.avg_pool2d(active, average)
    return Active(active, y, y.transpose(0, 1).contiguous().flatten(2).transpose(0, 1))


def descend(
    dy: Tensor,
    active: Tensor,
    x: Tensor,
    normal: Normal | None,
    negative_slope: float,
    average: int = 1,
) -> Descent:
    """The way back through `activate`, to x and to the parameters of batch norm.

    Args:
        dy: (B, K, Ho, Wo) gradient of y, any strides.
        active: What `activate` gave.
        x, normal, negative_slope, average: What it was given.

    Returns:
        A `Descent`.

    Source: Ioffe and Szegedy 2015.

    Example:
        >>> x = torch.tensor([[[[1.0, -2.0]]]])
        >>> descend(torch.ones(1, 1, 1, 2), x, x, None, 0.5).dx
        tensor([[[[1.0000, 0.5000]]]])
    """
    done = None
    if average == 1:
        done = compiled.descend(dy.flatten(2), active, x, normal, negative_slope)
    if done is not None:
        return done
    dy = dy.contiguous(memory_format=torch.channels_last)
    if average != 1:
        window = (average, average)
        dy = _aten.avg_pool2d_backward(dy, active, window, window, (0, 0), False, True, None)
    dz = _aten.leaky_relu_backward(dy, active, negative_slope, True)
    if normal is None:
        return Descent(dz, None, None)
    # Both sums in one pass.
    _, along, total = _aten.native_batch_norm_backward(
        widened(dz), widened(x), torch.ones_like(normal.mean), None, None,
        normal.mean, normal.inverse, True, 0.0, (False, True, True),
    )  # fmt: skip
    return Descent(dz.mul_(per_kernel(normal.scale)), along, total)


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
        dmaxima: (B, K, Ho, Wo) what the maxima get, channels last in memory.
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
        torch.addcmul(per_kernel(offset), maps, per_kernel(slope), out=maps)
    own_memory = maps.permute(0, 2, 3, 1).view(len(maps), -1, maps.shape[1])
    own_memory.scatter_add_(1, _by_position(where), _by_position(dmaxima))
