"""Many steps in one call: the rates that they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from spela import Frozen, SpelaBlock, SpelaConv2d, SpelaLinear, SpelaSequential
from spela.optim import LocalAdam, LocalSGD, layer_groups
from tests.spela.many_steps import RATES, small_stack, some_samples


@pytest.mark.parametrize("kind", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_rates_may_be_an_array(kind: Callable[[list[float]], Any]) -> None:
    x, target = some_samples()
    nets = small_stack(), small_stack()
    for net, rates in zip(nets, (RATES, kind(RATES)), strict=True):
        net.local_steps(x, target, LocalAdam(net.parameters()), np.int64(10), rates)
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("lr", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("kind", ["linear", "convolution", "block"])
def test_a_rate_that_is_no_rate_is_refused_before_anything_moves(kind: str, lr: float) -> None:
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    x, target = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
    net = {
        "linear": SpelaSequential(nn.Flatten(), SpelaLinear(64, 8, 3), SpelaLinear(8, 8, 3)),
        "convolution": SpelaSequential(
            SpelaConv2d(1, 4, 3, 3, output_size=(3, 3), symmetric_dim=4)
        ),
        "block": SpelaSequential(SpelaBlock(body, 3, x)),
    }[kind]
    for optimizer in (LocalSGD(net.parameters(), lr=0.1), LocalAdam(net.parameters(), lr=0.1)):
        optimizer.param_groups[0]["lr"] = lr
        before = {name: value.clone() for name, value in net.state_dict().items()}
        with pytest.raises(ValueError, match="`lr` must be in"):
            net.local_step(x, target, optimizer)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_rates_fill_a_rate_that_is_a_tensor() -> None:
    lr = torch.tensor(0.1)
    net = SpelaSequential(SpelaLinear(5, 8, 3))
    for optimizer in (LocalSGD(net.parameters(), lr=lr), torch.optim.SGD(net.parameters(), lr=lr)):
        net.local_steps(torch.randn(6, 5), torch.arange(6) % 3, optimizer, 3, [0.2, 0.3])
        assert optimizer.param_groups[0]["lr"] is lr
        assert lr == torch.tensor(0.3)


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
def test_a_refused_batch_leaves_the_rate(lr: Any) -> None:
    net = SpelaSequential(SpelaLinear(4, 8, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    with pytest.raises(ValueError, match="5"):
        net.local_steps(torch.randn(6, 5), torch.arange(6) % 3, optimizer, [4, 2], [0.1, 0.2])
    assert optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == 0.5


@pytest.mark.parametrize("rates", [None, [0.1]], ids=["own rate", "rates"])
@pytest.mark.parametrize("activation", ["gelu", "tanh"])
def test_a_rate_that_is_none_of_a_later_group_is_found_before_the_first_layer(
    activation: str, rates: list[float] | None
) -> None:
    net = SpelaSequential(*(SpelaLinear(6, 6, 3, activation=activation) for _ in range(2)))
    optimizer = LocalAdam(layer_groups(net, [0.1, 0.1]))
    optimizer.param_groups[1]["lr"] = float("nan")
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match="`lr` must be in"):
        net.local_steps(torch.randn(5, 6), torch.arange(5) % 3, optimizer, 5, rates)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_rates_are_of_the_layers_that_learn() -> None:
    net = SpelaSequential(Frozen(SpelaSequential(SpelaLinear(4, 4, 3))), SpelaLinear(4, 8, 3))
    (group,) = layer_groups(net, [0.1])
    assert [*map(id, group["params"])] == [*map(id, net[1].parameters())]


def test_a_rate_of_one_element_is_a_rate() -> None:
    found = []
    for rate in (0.1, torch.tensor(0.1), torch.tensor([0.1])):
        net = small_stack()
        found.append(net.local_step(*some_samples(), LocalSGD(net.parameters(), lr=rate)))
        found.append(net[0].weight.detach())
    assert all(torch.equal(one, other) for one, other in zip(found[:2] * 2, found[2:], strict=True))
