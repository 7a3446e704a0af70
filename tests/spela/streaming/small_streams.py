"""Small networks for streams, and samples of classes that are told apart."""

from __future__ import annotations

import torch
from torch import nn

from spela import RowNorm, SpelaConv2d, SpelaLinear, SpelaSequential


def small_net(max_classes: int = 6, objective: str = "softmax") -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    return SpelaSequential(
        RowNorm(),
        SpelaLinear(5, 16, max_classes, objective=objective, generator=g),
        nn.Dropout(0.2),
        SpelaLinear(16, 16, max_classes, objective=objective, generator=g),
    )


def named_samples(rows: int, seed: int, classes: int = 5) -> tuple[torch.Tensor, list[str]]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (rows,), generator=g)
    x = torch.randn(rows, 5, generator=g) * 0.3 + 2 * torch.eye(5)[y]
    return x, ["abcde"[label] for label in y.tolist()]


def small_conv_net() -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    return SpelaSequential(
        SpelaConv2d(
            1, 4, 3, 5, (3, 3), symmetric_dim=8, grouping=5, objective="softmax", generator=g
        ),
        nn.Flatten(),
        SpelaLinear(36, 16, 5, objective="softmax", generator=g),
    )
