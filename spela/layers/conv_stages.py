"""Convolution, batch norm, LeakyReLU and pooling of one layer: forward, and its gradient in closed form.

Max pooling commutes with an increasing function, so it comes first and the affine map and LeakyReLU see a
quarter of the map. Where batch norm's factor is negative the kernel is negated, whose maximum is then the
minimum's; a factor of exactly 0 is taken for a positive one, where autograd, which finds the whole window
equal, takes its first pixel: both are subgradients. What is left on the full map is the convolution, one
pass for maxima and statistics, and one update in place that turns the convolution's output into its
gradient (`spela_kernels.pooling`). Source: Ioffe and Szegedy 2015 for the batch norm's gradient.

Axes: B batch, K kernels, H, W map of the convolution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from spela.layers.running import keep_statistics
from spela_kernels.cosines import widened
from spela_kernels.pooling import (
    Normal,
    activate,
    descend,
    per_kernel,
    scatter_to_maxima_,
    window_maxima,
)

__all__ = ["Stages", "StagesOutput", "stages_backward", "stages_forward"]


class Stages(NamedTuple):
    """The modules and settings of a convolution layer."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None
    negative_slope: float  # of LeakyReLU, >= 0
    pool: str | None  # max, avg or None
    pool_size: int  # window and stride


class StagesOutput(NamedTuple):
    """What `stages_forward` leaves for `stages_backward`."""

    y: Tensor  # (B, K, Ho, Wo) output, without a graph
    rows: Tensor  # (B, K, Ho * Wo) the same, kernels first in memory
    conv: Tensor  # (B, K, H, W) the convolution's output with its graph, kernels negated by `sign`
    sign: Tensor  # (K,) 1 or -1
    where: Tensor | None  # of the maxima, where `window_maxima` has said so
    x: Tensor  # what batch norm took: `conv`, or its maxima
    normal: Normal | None  # what it made of it
    active: Tensor  # what LeakyReLU gave, before average pooling


def _last_channels(maps: Tensor) -> Tensor:
    """The maps with channels last in memory, and in their strides where one channel leaves both readings."""
    maps = maps.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = maps.shape
    return maps.as_strided(maps.shape, (channels * height * width, 1, channels * width, channels))


def _moments(
    conv: Tensor, known: tuple[Tensor, Tensor] | None, norm: nn.BatchNorm2d, sign: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean (K,) and variance (K,) to normalise with; in training the running ones move on.

    `known` are those of `conv`, where a pass over it has found them.
    """
    if not norm.training and norm.running_mean is not None and norm.running_var is not None:
        return norm.running_mean * sign, norm.running_var
    if known is not None:
        mean, variance = known
    elif conv.is_meta:  # the op below has no shapes there
        mean = variance = conv.new_empty(conv.shape[1])
    else:
        mean, variance = torch.batch_norm_update_stats(widened(conv), None, None, 0.0)
    keep_statistics(norm, mean * sign, variance, conv.numel() // conv.shape[1])
    return mean, variance


def _average(stages: Stages) -> int:
    return stages.pool_size if stages.pool == "avg" else 1


def stages_forward(stages: Stages, x: Tensor) -> StagesOutput:
    """pool(leaky_relu(batch_norm(conv(x)))), batch norm as it does in its own mode.

    Args:
        stages: What to run.
        x: (B, C, H, W); receives no gradient.

    Returns:
        A `StagesOutput`.
    """
    layer, norm, negative_slope, pool, pool_size = stages
    # In this order pooling, batch norm and the convolution itself are several times faster.
    x = _last_channels(x.detach())
    weight, bias = layer.weight, layer.bias
    sign = torch.ones_like(weight[:, 0, 0, 0])
    if norm is not None:
        sign = torch.where(norm.weight.detach() < 0, -sign, sign)
    with torch.enable_grad():
        signed = weight * sign[:, None, None, None]
        conv = layer._conv_forward(
            x,
            signed.contiguous(memory_format=torch.channels_last),
            None if bias is None else bias * sign,
        )
    with torch.no_grad():
        where, known, values, normal = None, None, conv.detach(), None
        if pool == "max":
            values, where, known = window_maxima(values, pool_size)
        if norm is not None:
            mean, variance = _moments(conv.detach(), known, norm, sign)
            inverse = (variance + norm.eps).rsqrt()
            scale = norm.weight.abs() * inverse
            normal = Normal(mean, inverse, scale, norm.bias - mean * scale)
        active, y, rows = activate(values, normal, negative_slope, _average(stages))
    return StagesOutput(y, rows, conv, sign, where, values, normal, active)


@torch.no_grad()
def stages_backward(stages: Stages, done: StagesOutput, dy: Tensor) -> dict[Tensor, Tensor]:
    """Gradients of the convolution's and the batch norm's parameters.

    Args:
        stages: As `stages_forward` was given them.
        done: What it returned; its `conv` may be overwritten.
        dy: (B, K, Ho, Wo) gradient of `done.y`.

    Returns:
        The gradient of each parameter.
    """
    layer, norm, negative_slope, pool, pool_size = stages
    gradients: dict[Tensor, Tensor] = {}
    batch_moments = norm is not None and (norm.training or norm.running_mean is None)
    normal = done.normal
    dx, along, total = descend(dy, done.active, done.x, normal, negative_slope, _average(stages))
    dconv = done.conv.detach().contiguous(memory_format=torch.channels_last)
    slope, offset = None, None
    if norm is not None and normal is not None and along is not None and total is not None:
        gradients |= {norm.weight: along * done.sign, norm.bias: total}
        if batch_moments:
            # Through the batch's own mean and deviation, on the whole map: affine in `conv`.
            share = -normal.scale / (dconv.numel() // dconv.shape[1])
            slope = share * along * normal.inverse
            offset = share * total - slope * normal.mean
    if pool == "max":
        scatter_to_maxima_(dconv, pool_size, done.where, dx, slope, offset)
    elif slope is None or offset is None:
        dconv.copy_(dx)
    else:
        torch.addcmul(per_kernel(offset), dconv, per_kernel(slope), out=dconv).add_(dx)
    own = [p for p in (layer.weight, layer.bias) if p is not None]
    if batch_moments and layer.bias is not None:
        # A shift that the batch's own mean takes out again; summing dconv would find rounding, which Adam
        # turns into steps of full size.
        gradients[layer.bias] = torch.zeros_like(layer.bias)
        own = own[:1]
    # In the parameter's own strides: torch's fused optimizers walk both through memory side by side.
    found = torch.autograd.grad(done.conv, own, dconv)
    return gradients | {p: torch.empty_like(p).copy_(g) for p, g in zip(own, found, strict=True)}
