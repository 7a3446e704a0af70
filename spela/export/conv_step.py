"""A convolution layer's step in operators that inference engines have: no graph, no autograd.

`spela.layers.conv_stages` is what PyTorch trains with: compiled passes, and torch's own gradient of the
convolution. Here the same gradients are written out. The weight's is itself a convolution, of the input
with the gradient of the map. A pooling window is an axis of its own, so that the pixel a maximum came from
is found again by comparing places. Source: Ioffe and Szegedy 2015 for the batch norm's gradient.

Axes: B batch, I input channels, K kernels, H, W map of the convolution, Ho, Wo pooled map, n pixels of a
window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spela.layers import SpelaConv2d
from spela_kernels.activations import get_activation
from spela_kernels.contracts import Settings
from spela_kernels.pooling import per_kernel
from spela_kernels.projection import reference
from spela_kernels.projection.types import Call

__all__ = ["conv_step"]

Tensors = dict[str, Tensor]


def conv_step(
    layer: SpelaConv2d,
    own: Tensors,
    statistics: Tensors,
    training: Tensor,
    x: Tensor,
    target: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensors]:
    """Loss, output, scores and gradients of one layer.

    Args:
        layer: What to run.
        own: Its parameters by name.
        statistics: Its batch norm's buffers by name, which move on in place; empty: it keeps none.
        training: () bool: whether batch norm takes the batch's own moments.
        x: (B, I, height, width).
        target: (B,) int64 labels.

    Returns:
        loss (), y (B, K, Ho, Wo), scores (B, C), and the gradient of each parameter by name.
    """
    phi, slope = get_activation("leaky_relu"), layer.negative_slope
    window = layer.pool_size if layer.pool else 1
    padded = nn.functional.pad(x, layer._reversed_padding_repeated_twice)
    conv = nn.functional.conv2d(
        padded, own["weight"], own.get("bias"), layer.stride, 0, layer.dilation, layer.groups
    )
    gamma = own.get("norm.weight", torch.ones_like(conv[0, :, 0, 0]))  # (K,)
    beta = own.get("norm.bias", torch.zeros_like(gamma))
    mean, inverse = torch.zeros_like(gamma), torch.ones_like(gamma)
    if layer.norm is not None:
        mean, inverse = _moments(layer.norm, statistics, training, conv)
    normal = (conv - per_kernel(mean)) * per_kernel(inverse)
    tiles, place = _tiles(normal, window), None
    if layer.pool == "max":
        # Batch norm and LeakyReLU are monotonous: only one pixel of a window has to go through them.
        signed = torch.where(per_kernel(gamma) < 0, -conv, conv)
        place = _tiles(signed, window).argmax(dim=-1, keepdim=True)
        tiles = tiles.gather(-1, place)  # n = 1
    active = phi.forward(tiles * _on_tiles(gamma) + _on_tiles(beta), slope)
    y = active.mean(dim=-1)

    settings = Settings(objective=layer.objective, scale=layer.scale)
    call = Call(y.flatten(2), own["projection"], layer.vectors, layer.grouping, target, settings)
    saved = reference.forward(call)
    drows, dprojection = reference.backward(call, saved)

    dz = drows.view_as(y)[..., None] / tiles.shape[-1] * phi.derivative(active, slope)
    total, along = dz.sum(dim=(0, 2, 3, 4)), (dz * tiles).sum(dim=(0, 2, 3, 4))
    dtiles = dz * _on_tiles(gamma * inverse)
    if place is not None:
        dtiles = dtiles * (place == torch.arange(window * window, device=x.device))
    dconv = _maps(dtiles, window, conv)
    dbias = dconv.sum(dim=(0, 2, 3))
    if layer.norm is not None:
        # Through the batch's own moments, which take the convolution's bias out again.
        by_batch = training if statistics else torch.ones_like(training)
        share = torch.where(by_batch, gamma * inverse / _pixels(conv), torch.zeros_like(gamma))
        dconv = dconv - per_kernel(share) * (per_kernel(total) + per_kernel(along) * normal)
        dbias = torch.where(by_batch, torch.zeros_like(dbias), dbias)
    gradients = {
        "weight": _weight_gradient(layer, padded, dconv),
        "bias": dbias,
        "norm.weight": along,
        "norm.bias": total,
        "projection": dprojection,
    }
    return saved.loss, y, reference.scores(call), {name: gradients[name] for name in own}


def _moments(
    norm: nn.BatchNorm2d, statistics: Tensors, training: Tensor, conv: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean (K,) and inverse deviation (K,) to normalise with; in training the running ones move on."""
    mean = conv.mean(dim=(0, 2, 3))
    variance = (conv - per_kernel(mean)).square().mean(dim=(0, 2, 3))
    if statistics:
        running_mean, running_var = statistics["norm.running_mean"], statistics["norm.running_var"]
        tracked = statistics["norm.num_batches_tracked"].add_(training.long())
        share = tracked.to(mean.dtype).reciprocal()  # the mean of all batches
        if norm.momentum is not None:
            share = torch.full_like(share, norm.momentum)
        count: Any = _pixels(conv)  # a symbol, if any batch is to fit
        unbiased = variance * (count / torch.sym_max(count - 1, 1))
        moved = running_mean.lerp(mean, share), running_var.lerp(unbiased, share)
        mean = torch.where(training, mean, running_mean)
        variance = torch.where(training, variance, running_var)
        running_mean.copy_(torch.where(training, moved[0], running_mean))
        running_var.copy_(torch.where(training, moved[1], running_var))
    return mean, (variance + norm.eps).rsqrt()


def _weight_gradient(layer: nn.Conv2d, padded: Tensor, dconv: Tensor) -> Tensor:
    """The batch takes the place of the channels, and stride and dilation take each other's.

    Args:
        layer: The convolution.
        padded: (B, I, height, width) its input, zeros around it.
        dconv: (B, K, H, W) gradient of its output.

    Returns:
        (K, I / groups, kernel height, kernel width).
    """
    by_group = padded.unflatten(1, (layer.groups, -1)).permute(2, 1, 0, 3, 4)
    images, filters = by_group.flatten(1, 2), dconv.transpose(0, 1)  # (I/groups, groups * B, ..)
    found = nn.functional.conv2d(
        images, filters, None, layer.dilation, 0, layer.stride, layer.groups
    )
    height, width = layer.kernel_size
    return found[..., :height, :width].transpose(0, 1)  # the rest: pixels that no stride reaches


def _pixels(maps: Tensor) -> int:
    return maps.numel() // maps.shape[1]


def _on_tiles(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _tiles(maps: Tensor, window: int) -> Tensor:
    """(B, K, H, W) -> (B, K, Ho, Wo, n); pixels that fill no window are left out."""
    height, width = (size // window for size in maps.shape[2:])
    kept = maps[..., : height * window, : width * window]
    kept = kept.unflatten(3, (width, window)).unflatten(2, (height, window))
    return kept.transpose(3, 4).flatten(4)


def _maps(tiles: Tensor, window: int, like: Tensor) -> Tensor:
    """Back from `_tiles` to the shape of `like`; zeros for the pixels that were left out."""
    maps = tiles.unflatten(4, (window, window)).transpose(3, 4).flatten(4).flatten(2, 3)
    below, right = (size % window for size in like.shape[2:])
    return nn.functional.pad(maps, (0, right, 0, below))
