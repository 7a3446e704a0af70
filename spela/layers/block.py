"""Convolution, batch norm, LeakyReLU and pooling of one layer: forward, and its gradient in closed form.

Max pooling commutes with an increasing function, so it comes first and the affine map and LeakyReLU see a
quarter of the map. Where batch norm's factor is negative the kernel is negated, whose maximum is then the
minimum's. What is left on the full map is the convolution, one pass for maxima and statistics, and one update
in place that turns the convolution's output into its gradient (`spela_kernels.pooling`). Source: spec section
4; Ioffe and Szegedy 2015 for the batch norm's gradient.

Axes: B batch, K kernels, H, W map of the convolution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from spela_kernels.pooling import scatter_to_maxima_, window_maxima
from spela_kernels.rows import widened

__all__ = ["Block", "Stages", "block_backward", "block_forward"]


class Stages(NamedTuple):
    """The modules and settings of a block."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None
    negative_slope: float  # of LeakyReLU, >= 0
    pool: str | None  # max, avg or None
    pool_size: int  # window and stride


class Block(NamedTuple):
    """What `block_forward` leaves for `block_backward`."""

    y: Tensor  # (B, K, Ho, Wo) output, without a graph
    conv: Tensor  # (B, K, H, W) the convolution's output with its graph, kernels negated by `sign`
    sign: Tensor  # (K,) 1 or -1
    where: Tensor | None  # of the maxima, where `window_maxima` has said so
    normed: Tensor  # what batch norm took: `conv`, or its maxima
    mean: Tensor | None  # (K,) its mean and
    inverse: Tensor | None  # (K,) one over its deviation
    active: Tensor  # what LeakyReLU gave, before average pooling


def _per_kernel(values: Tensor) -> Tensor:
    return values[:, None, None]


def _last_channels(maps: Tensor) -> Tensor:
    """The maps with channels last in memory, and in their strides where one channel leaves both readings."""
    maps = maps.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = maps.shape
    return maps.as_strided(maps.shape, (channels * height * width, 1, channels * width, channels))


def _moments(
    conv: Tensor, known: tuple[Tensor, Tensor] | None, norm: nn.BatchNorm2d, sign: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean (K,) and variance (K,) to normalise with, of `conv` where `known` are none; in training the running
    ones move on."""
    if not norm.training and norm.running_mean is not None and norm.running_var is not None:
        return norm.running_mean * sign, norm.running_var
    mean, variance = known or torch.batch_norm_update_stats(widened(conv), None, None, 0.0)
    if norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        share = norm.momentum
        if share is None:
            share = 1.0 / float(norm.num_batches_tracked)
        count = conv.numel() // conv.shape[1]
        norm.running_mean.lerp_(mean * sign, share)
        norm.running_var.lerp_(variance * (count / (count - 1)), share)
    return mean, variance


def block_forward(stages: Stages, x: Tensor) -> Block:
    """pool(leaky_relu(batch_norm(conv(x)))), batch norm as it does in its own mode.

    Args:
        stages: What to run.
        x: (B, C, H, W); receives no gradient.

    Returns:
        A `Block`.
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
        where, known, normed = None, None, conv.detach()
        if pool == "max":
            normed, where, known = window_maxima(normed, pool_size)
        active, mean, inverse = normed, None, None
        if norm is not None:
            mean, variance = _moments(conv.detach(), known, norm, sign)
            inverse = (variance + norm.eps).rsqrt()
            scale = norm.weight.abs() * inverse
            shift = _per_kernel(norm.bias - mean * scale)
            active = torch.addcmul(shift, normed, _per_kernel(scale)).to(normed.dtype)
        own_memory = active is not normed or pool == "max"
        active = nn.functional.leaky_relu(active, negative_slope, inplace=own_memory)
        y = nn.functional.avg_pool2d(active, pool_size) if pool == "avg" else active
    return Block(y, conv, sign, where, normed, mean, inverse, active)


@torch.no_grad()
def block_backward(stages: Stages, block: Block, dy: Tensor) -> dict[Tensor, Tensor]:
    """Gradients of the convolution's and the batch norm's parameters.

    Args:
        stages: As `block_forward` was given them.
        block: What it returned; its `conv` may be overwritten.
        dy: (B, K, Ho, Wo) gradient of `block.y`.

    Returns:
        The gradient of each parameter.
    """
    layer, norm, negative_slope, pool, pool_size = stages
    dy = dy.contiguous(memory_format=torch.channels_last)
    if pool == "avg":
        window = (pool_size, pool_size)
        dy = torch.ops.aten.avg_pool2d_backward(
            dy, block.active, window, window, (0, 0), False, True, None
        )
    dpre = torch.ops.aten.leaky_relu_backward(dy, block.active, negative_slope, True)
    gradients: dict[Tensor, Tensor] = {}
    batch_moments = norm is not None and (norm.training or norm.running_mean is None)
    dconv = block.conv.detach().contiguous(memory_format=torch.channels_last)
    slope, offset = None, None
    if norm is not None and block.mean is not None and block.inverse is not None:
        # The sums of dpre * normalised and of dpre, in one pass.
        _, along, total = torch.ops.aten.native_batch_norm_backward(
            widened(dpre), widened(block.normed), torch.ones_like(block.mean), None, None,
            block.mean, block.inverse, True, norm.eps, (False, True, True),
        )  # fmt: skip
        gradients |= {norm.weight: along * block.sign, norm.bias: total}
        scale = norm.weight.abs() * block.inverse
        dpre.mul_(_per_kernel(scale))
        if batch_moments:
            # Through the batch's own mean and deviation, on the whole map: affine in `conv`.
            share = -scale / (dconv.numel() // dconv.shape[1])
            slope = share * along * block.inverse
            offset = share * total - slope * block.mean
    if pool == "max":
        scatter_to_maxima_(dconv, pool_size, block.where, dpre, slope, offset)
    elif slope is None or offset is None:
        dconv.copy_(dpre)
    else:
        torch.addcmul(_per_kernel(offset), dconv, _per_kernel(slope), out=dconv).add_(dpre)
    own = [p for p in (layer.weight, layer.bias) if p is not None]
    if batch_moments and layer.bias is not None:
        # A shift that the batch's own mean takes out again; summing dconv would find rounding, which Adam
        # turns into steps of full size.
        gradients[layer.bias] = torch.zeros_like(layer.bias)
        own = own[:1]
    # In the parameter's own strides: torch's fused optimizers walk both through memory side by side.
    found = torch.autograd.grad(block.conv, own, dconv)
    return gradients | {p: torch.empty_like(p).copy_(g) for p, g in zip(own, found, strict=True)}
