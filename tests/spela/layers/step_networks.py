"""Networks of every kind that makes local steps, and optimizers for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from spela import RowNorm, SpelaConv2d, SpelaLinear, SpelaSequential, baselines, optim
from spela.layers import with_binary_weight

G = torch.Generator().manual_seed(1)
ROWS, IMAGES = torch.randn(12, 6, generator=G), torch.randn(12, 1, 8, 8, generator=G)
TARGET = torch.arange(12) % 3


def linear_net(freeze: tuple[str, ...] = (), binary: bool = False) -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    layers = [
        SpelaLinear(6, 16, 3, activation="prelu", generator=g),
        SpelaLinear(16, 9, 3, generator=g),
    ]
    if binary:
        layers = [with_binary_weight(layer) for layer in layers]
    net = SpelaSequential(layers[0], RowNorm(), nn.ReLU(inplace=True), layers[1])
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in freeze)
    return net


def conv_net(batch_norm: bool = True) -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    settings = {"symmetric_dim": 8, "batch_norm": batch_norm, "generator": g}
    return SpelaSequential(
        nn.ReLU(inplace=True),
        SpelaConv2d(1, 4, 3, 3, (3, 3), **settings),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        SpelaLinear(36, 8, 3, generator=g),
    )


def _mono() -> nn.Module:
    g = torch.Generator().manual_seed(0)
    return baselines.MonoForwardSequential(
        baselines.MonoForwardLayer(6, 8, 3, generator=g),
        baselines.MonoForwardLayer(8, 8, 3, generator=g),
    )


def _forward_forward() -> nn.Module:
    g = torch.Generator().manual_seed(0)
    layers = [
        baselines.ForwardForwardLayer(6, 8, generator=g),
        baselines.ForwardForwardLayer(8, 8, generator=g),
    ]
    return baselines.ForwardForwardSequential(layers[0], RowNorm(), layers[1], num_classes=3)


def _backprop_layers() -> list[nn.Module]:
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)]
    g = torch.Generator().manual_seed(0)
    for parameter in nn.Sequential(*layers).parameters():
        parameter.data.normal_(generator=g)
    return layers


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (linear_net, ROWS),
    "part frozen": (lambda: linear_net(freeze=("0.bias", "3.weight")), ROWS),
    "binary": (lambda: linear_net(binary=True), ROWS),
    "convolution": (conv_net, IMAGES),
    "convolution without batch norm": (lambda: conv_net(batch_norm=False), IMAGES),
    "mono-forward": (_mono, ROWS),
    "forward-forward": (_forward_forward, ROWS),
    "pepita": (
        lambda: baselines.PepitaSequential(
            *_backprop_layers(), generator=torch.Generator().manual_seed(0)
        ),
        ROWS,
    ),
    "backprop": (lambda: baselines.BackpropSequential(*_backprop_layers()), ROWS),
}
Make = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "LocalSGD": lambda p: optim.LocalSGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "LocalAdam": lambda p: optim.LocalAdam(p, 0.05, weight_decay=0.01),
    "LocalAdam, a group a parameter": lambda p: optim.LocalAdam([{"params": [q]} for q in p], 0.05),
    "SGD": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, 0.05),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, 0.05, foreach=True),
}


def seeded_step(net: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    torch.manual_seed(0)  # Forward-Forward draws wrong labels
    return net.local_step(x, TARGET.clone(), optimizer)  # type: ignore[operator]
