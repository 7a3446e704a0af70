"""The batch norm of SpelaConv2d, and other norms in its place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spela import SpelaConv2d, optim
from tests.spela.fused_steps import check_layer_steps
from tests.spela.layers.small_convolutions import small_batch, small_layer


def test_eval_uses_running_statistics() -> None:
    layer, (x, target) = small_layer().double(), small_batch(torch.float64)
    for _ in range(400):
        layer(x)
    batch_statistics = layer(x)
    layer.eval()
    kept = copy.deepcopy(layer.norm.state_dict())
    # 336 values a channel: the running variance is the unbiased one
    torch.testing.assert_close(layer(x), batch_statistics, rtol=5e-3, atol=5e-3)
    shifted = layer(x[:1] + 1)
    assert (shifted - layer.train()(x[:1] + 1)).abs().max() > 0.1
    layer.norm.load_state_dict(kept)
    layer.eval().local_step(x, target, optim.LocalSGD(layer.parameters(), lr=0.0))
    assert torch.equal(layer.norm.running_mean, kept["running_mean"])


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_that_nobody_counts_move_as_in_torch(momentum: float | None) -> None:
    layer, (x, target) = small_layer(), small_batch()
    layer.norm.momentum, layer.norm.num_batches_tracked = momentum, None
    plain = copy.deepcopy(layer)
    plain(x)
    layer.local_step(x, target, optim.LocalSGD(layer.parameters(), lr=0.0))
    torch.testing.assert_close(layer.norm.running_mean, plain.norm.running_mean)
    torch.testing.assert_close(layer.norm.running_var, plain.norm.running_var)


class _Doubled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "norm",
    [
        nn.InstanceNorm2d(4, affine=True),
        nn.GroupNorm(2, 4),
        nn.BatchNorm2d(4, affine=False),
        _Doubled(4),
    ],
    ids=lambda norm: type(norm).__name__ + str(norm.affine),
)
def test_another_norm_is_what_a_step_runs(norm: nn.Module) -> None:
    x, target = torch.randn(6, 2, 8, 8), torch.arange(6) % 3
    layer = SpelaConv2d(2, 4, 3, 3, output_size=(3, 3), symmetric_dim=4)
    layer.norm = copy.deepcopy(norm)
    other = copy.deepcopy(layer)
    loss, y = layer.local_step(x, target, optim.LocalSGD(layer.parameters(), lr=0.1))
    expected, map_ = other.local_step(x, target, torch.optim.SGD(other.parameters(), lr=0.1))
    torch.testing.assert_close((loss, y), (expected, map_))
    for now, then in zip(layer.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(now, then)


def test_a_hook_on_the_norm_is_called() -> None:
    layer = SpelaConv2d(2, 4, 3, 3, output_size=(3, 3), symmetric_dim=4)
    calls: list[int] = []
    layer.norm.register_forward_hook(lambda module, args, y: calls.append(len(y)))
    layer.local_step(
        torch.randn(6, 2, 8, 8), torch.arange(6) % 3, optim.LocalSGD(layer.parameters(), lr=0.1)
    )
    assert calls == [6]


@pytest.mark.parametrize("make", [torch.optim.SGD, optim.LocalSGD])
def test_a_norm_that_keeps_no_statistics_moves_none(make: Any) -> None:
    layer = SpelaConv2d(1, 6, 3, 10, output_size=(3, 3), symmetric_dim=16)
    layer.norm.track_running_stats = False
    layer.local_step(torch.randn(5, 1, 8, 8), torch.arange(5), make(layer.parameters(), lr=0.1))
    assert layer.norm.num_batches_tracked == 0
    assert layer.norm.running_mean.tolist() == [0.0] * 6


def test_a_norm_without_statistics_goes_by_the_batchs_in_eval_mode_too() -> None:
    layer, (x, target) = small_layer(dtype=torch.float64), small_batch(torch.float64)
    layer.norm = nn.BatchNorm2d(4, track_running_stats=False, dtype=torch.float64)
    layers = layer.eval(), copy.deepcopy(layer)
    ours, theirs = (
        kind(each.parameters(), lr=0.5)
        for kind, each in zip((optim.LocalSGD, torch.optim.SGD), layers, strict=True)
    )
    check_layer_steps(layers, (ours, theirs), x, target, rtol=1e-9)
