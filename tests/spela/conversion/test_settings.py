"""What `convert` was asked for reaches every layer and block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from spela import SpelaBlock, SpelaConv2d, convert

IMAGES = torch.randn(6, 2, 16, 16)


def _model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 49, 8), nn.ReLU(),
        nn.Linear(8, 5),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "objective", "scale", "conv_scale", "dim"),
    [
        ({}, "softmax", 20.0, 60.0, 16),
        (
            {"objective": "cosine", "scale": 3.0, "conv_scale": 7.0, "symmetric_dim": 6},
            "cosine",
            3.0,
            7.0,
            6,
        ),
    ],
)
def test_layers_learn_by_what_was_asked_for(
    given: dict[str, Any], objective: str, scale: float, conv_scale: float, dim: int
) -> None:
    net = convert(_model(), 5, IMAGES, **given)
    for layer in net.local_layers:
        assert layer.objective == objective
        assert layer.scale == (conv_scale if isinstance(layer, SpelaConv2d) else scale)
    conv = net.local_layers[0]
    assert conv.projection.shape[2] == dim
    assert conv.projection.std().item() == pytest.approx(0.1, rel=0.1)
    assert int(conv.grouping.max()) == 4  # a group a class


def test_blocks_learn_by_what_was_asked_for() -> None:
    settings = {"objective": "softmax", "scale": 3.0}
    for block in convert(_model(), 5, IMAGES, blocks=2, **settings).local_layers:
        assert isinstance(block, SpelaBlock)
        assert {name: getattr(block, name) for name in settings} == settings
