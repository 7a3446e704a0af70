"""Local steps under float16 autocast: gradients of a mean over many are smaller than its numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from spela import SpelaBlock, SpelaConv2d
from spela.layers import LocalLayer
from spela.optim import LocalSGD

X = torch.randn(512, 1, 12, 12, generator=torch.Generator().manual_seed(0))
TARGET = torch.arange(512) % 10


def _conv() -> LocalLayer:
    return SpelaConv2d(1, 128, 5, 10, output_size=(4, 4), pool="max", symmetric_dim=100)


def _block() -> LocalLayer:
    body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Conv2d(8, 16, 3))
    return SpelaBlock(body, 10, X[:2])


def _moved(layer: LocalLayer, x: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """What a step of learning rate 1 takes from each parameter."""
    layer = copy.deepcopy(layer).to(x.dtype)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = LocalSGD(layer.parameters(), lr=1.0)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        layer.local_step(x, TARGET, optimizer)
    return {name: (before[name] - p.detach()).double() for name, p in layer.named_parameters()}


@pytest.mark.parametrize("build", [_conv, _block])
def test_a_large_batch_is_no_worse_than_in_bfloat16(build: type) -> None:
    torch.manual_seed(0)
    layer = build()
    exact = _moved(layer, X.double())
    half, brain = (_moved(layer, X, dtype) for dtype in (torch.float16, torch.bfloat16))
    checked = 0
    for name, expected in exact.items():
        size = expected.norm()
        if size < 1e-9:  # as of a bias in front of a batch norm
            continue
        errors = [float((found[name] - expected).norm() / size) for found in (half, brain)]
        assert errors[0] < 1.2 * errors[1] + 1e-2, (name, errors)
        checked += 1
    assert checked >= 3
