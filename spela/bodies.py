"""Four small networks by name, for images: what a run cuts into blocks, or trains end to end.

Axes: B batch, C channels, H, W image, E width of a transformer's tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spela.process import seeded

__all__ = ["NETWORKS", "build_body"]

_HEADS = 4
_DEPTH = 6


def _convolution(inputs: int, outputs: int, stride: int, factory: dict[str, Any]) -> nn.Sequential:
    """3 x 3, zeros padded, with batch norm, which makes a bias needless."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False, **factory),
        nn.BatchNorm2d(outputs, **factory),
    )


def _vgg(shape: tuple[int, ...], width: int, factory: dict[str, Any]) -> nn.Sequential:
    """Six convolutions; the map is halved behind the second, fourth, fifth and sixth."""
    modules: list[nn.Module] = []
    channels = shape[0]
    for outputs, halves in ((1, False), (1, True), (2, False), (2, True), (4, True), (4, True)):
        modules += [_convolution(channels, outputs * width, 1, factory), nn.LeakyReLU(0.01)]
        if halves:
            modules.append(nn.MaxPool2d(2))
        channels = outputs * width
    # Maps take the layout of the weights they meet: channels last is the faster one on a CPU. (Strided
    # 1 x 1 convolutions, a ResNet's, get wrong gradients in it from torch 2.14 where channels are few.)
    return nn.Sequential(*modules, nn.Flatten()).to(memory_format=torch.channels_last)


def _cifarnet(shape: tuple[int, ...], width: int, factory: dict[str, Any]) -> nn.Sequential:
    """Seven convolutions: one on 2 x 2 pixels, then pairs whose channels double, the map halved within each.

    Jordan 2024 (arXiv 2404.00498, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU") fixes the first, from
    the images' patches, and gives the pairs 64, 256 and 256 channels.
    """
    modules: list[nn.Module] = [nn.Conv2d(shape[0], 24, 2, **factory), nn.LeakyReLU(0.01)]
    inputs = 24
    for outputs in (width, 2 * width, 4 * width):
        convolution, norm = _convolution(inputs, outputs, 1, factory)
        modules += [convolution, nn.MaxPool2d(2), norm, nn.LeakyReLU(0.01)]
        modules += [_convolution(outputs, outputs, 1, factory), nn.LeakyReLU(0.01)]
        inputs = outputs
    modules += [nn.AdaptiveMaxPool2d(1), nn.Flatten()]
    return nn.Sequential(*modules).to(memory_format=torch.channels_last)


class _Residual(nn.Module):
    """Two convolutions beside a shortcut, which is a 1 x 1 convolution where sizes change."""

    def __init__(self, inputs: int, outputs: int, stride: int, factory: dict[str, Any]) -> None:
        super().__init__()
        self.first = _convolution(inputs, outputs, stride, factory)
        self.second = _convolution(outputs, outputs, 1, factory)
        self.act = nn.LeakyReLU(0.01)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False, **factory),
                nn.BatchNorm2d(outputs, **factory),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.act(self.first(x))) + self.shortcut(x))


def _resnet(shape: tuple[int, ...], width: int, factory: dict[str, Any]) -> nn.Sequential:
    """A convolution and three stages of two residual blocks, pooled: He et al. 2016 for small images."""
    modules: list[nn.Module] = [_convolution(shape[0], width, 1, factory), nn.LeakyReLU(0.01)]
    channels = width
    for factor, stride in ((1, 1), (2, 2), (4, 2)):
        for step in (stride, 1):
            modules.append(_Residual(channels, factor * width, step, factory))
            channels = factor * width
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class _Tokens(nn.Module):
    """Patches of 8 x 8 pixels as tokens, with learnt places: three convolutions halve maps above 4 x 4.

    Transformers learn in fewer epochs from these than from one product a patch: Xiao et al., "Early
    Convolutions Help Transformers See Better", NeurIPS 2021.
    """

    def __init__(self, shape: tuple[int, ...], width: int, factory: dict[str, Any]) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        channels, rows, columns = shape
        for outputs in (width // 4, width // 2, width):
            stride = 2 if min(rows, columns) > 4 else 1
            modules += [_convolution(channels, outputs, stride, factory), nn.LeakyReLU(0.01)]
            channels, rows, columns = outputs, -(-rows // stride), -(-columns // stride)
        self.stem = nn.Sequential(*modules, nn.Conv2d(width, width, 1, **factory))
        self.places = nn.Parameter(0.02 * torch.randn(1, rows * columns, width, **factory))

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x).flatten(2).transpose(1, 2) + self.places


class _Mean(nn.Module):
    """Tokens averaged."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


def _vit(shape: tuple[int, ...], width: int, factory: dict[str, Any]) -> nn.Sequential:
    """Patches through six transformer layers: Dosovitskiy et al. 2021, for small images."""
    layers = [
        nn.TransformerEncoderLayer(
            width, _HEADS, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True, **factory
        )
        for _ in range(_DEPTH)
    ]
    norm = nn.LayerNorm(width, **factory)
    return nn.Sequential(_Tokens(shape, width, factory), *layers, norm, _Mean())


_Build = Callable[[tuple[int, ...], int, dict[str, Any]], nn.Sequential]
NETWORKS: dict[str, tuple[_Build, int, int]] = {
    "vgg": (_vgg, 32, 16),
    "cifarnet": (_cifarnet, 64, 16),
    "resnet": (_resnet, 32, 4),
    "vit": (_vit, 128, 4),
}
"""Networks by name: the builder, the width that a recipe takes if it says none, the least image side."""


def build_body(
    name: str,
    sample_shape: tuple[int, ...],
    width: int,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """A network up to the rows (B, F) that its last layer would classify.

    Args:
        name: vgg, cifarnet, resnet or vit.
        sample_shape: (C, H, W) of an image.
        width: Channels of the first 3 x 3 convolution, or of a token (a multiple of 4); 0: the network's
            usual one.
        seed: Of the weights, which start as torch's.
        device: Where they live.
        dtype: Theirs.

    Raises:
        ValueError: If the samples are no images, or too small, or the width does not fit.

    Example:
        >>> build_body("vit", (1, 28, 28), 64, seed=0)(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 64])
    """
    build, usual, least = NETWORKS[name]
    if len(sample_shape) != 3:
        raise ValueError(
            f"--model {name} needs images (C, H, W), the data has samples of shape {sample_shape}: "
            "use --model mlp"
        )
    if min(sample_shape[1:]) < least:
        raise ValueError(
            f"--model {name} needs images of at least {least} x {least} pixels, got "
            f"{sample_shape[1]} x {sample_shape[2]}: use --resize"
        )
    width = width or usual
    if name == "vit" and width % _HEADS:
        raise ValueError(f"--width of vit must be a multiple of {_HEADS}, its heads; got {width}")
    with seeded(seed, torch.device(device)):
        return build(sample_shape, width, {"device": device, "dtype": dtype})
