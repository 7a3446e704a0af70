"""Networks that a folder can hold, with a batch of each one's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spela import Frozen, RowNorm, SpelaBlock, SpelaConv2d, SpelaLinear, SpelaSequential
from spela.layers import with_binary_weight

Case = tuple[SpelaSequential, Tensor]


def linear() -> Case:
    """Flattened images; a learnt slope, the user's own class vectors, no bias."""
    own = torch.randn(10, 16)
    settings: dict[str, Any] = {"objective": "softmax", "scale": 7.5}
    net = SpelaSequential(
        nn.Flatten(),
        SpelaLinear(64, 32, 10, activation="prelu", **settings),
        RowNorm("unit"),
        nn.Dropout(0.1),
        SpelaLinear(32, 16, 10, vectors=own, bias=False, init="kaiming_normal"),
    )
    return net, torch.randn(6, 1, 8, 8)


def convolutions() -> Case:
    """Drawn and given groups, batch norm inside and beside the layers, pools, a frozen layer."""
    groups = torch.arange(10).repeat(3, 1) % 3
    net = SpelaSequential(
        SpelaConv2d(1, 4, 3, 10, (3, 3), symmetric_dim=12, grouping=(2, 5)),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d((3, 3)),
        nn.LeakyReLU(0.2),
        SpelaConv2d(
            4, 3, 2, 10, 2, symmetric_dim=5, grouping=groups, pool=None, batch_norm=False
        ),
        nn.Flatten(),
        SpelaLinear(12, 8, 10, activation="gelu"),
    )  # fmt: skip
    net[4].requires_grad_(False)
    return net, torch.randn(6, 1, 8, 8)


def blocks() -> Case:
    """A head of every kind, a similarity loss, a frozen module between."""
    first = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding="same", bias=False),
        nn.BatchNorm2d(6, momentum=None),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    net = SpelaSequential(
        SpelaBlock(
            first, 10, torch.randn(2, 1, 8, 8), channels=3, hidden=7, similarity=0.3, dropout=0.1
        ),
        Frozen(nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 12))),
        SpelaBlock(nn.Linear(12, 9), 10, torch.randn(2, 12), projection=None, objective="log"),
    )
    return net, torch.randn(6, 1, 8, 8)


def binary() -> Case:
    """Two values a weight, latent ones behind them."""
    return (
        SpelaSequential(with_binary_weight(SpelaLinear(8, 6, 10)), SpelaLinear(6, 6, 10)),
        torch.randn(6, 8),
    )


def double() -> Case:
    """Float64, and a norm that stands in two places."""
    norm = RowNorm()
    net = SpelaSequential(
        norm, SpelaLinear(8, 6, 10), norm, nn.Linear(6, 6), nn.Tanh(), SpelaLinear(6, 6, 10)
    )
    return net.double(), torch.randn(6, 8).double()


NETWORKS: dict[str, Callable[[], Case]] = {
    build.__name__: build for build in (linear, convolutions, blocks, binary, double)
}
