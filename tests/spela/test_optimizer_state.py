"""State of another shape than its parameter's: torch's fused Adam would write beyond its end."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from spela import SpelaLinear, SpelaSequential, convert, optim

G = torch.Generator().manual_seed(0)
X, TARGET = torch.randn(8, 4, generator=G), torch.arange(8) % 3


def _layers(outputs: int) -> SpelaSequential:
    return SpelaSequential(SpelaLinear(4, outputs, 3), SpelaLinear(outputs, 8, 3))


def _blocks(outputs: int) -> SpelaSequential:
    model = nn.Sequential(nn.Linear(4, outputs), nn.ReLU(), nn.Linear(outputs, 8), nn.ReLU())
    return convert(model, 3, X, blocks=2)


def _optimizer(kind: str, net: nn.Module) -> torch.optim.Optimizer:
    if kind == "sgd":
        return optim.LocalSGD(net.parameters(), lr=0.1, momentum=0.9)
    return optim.LocalAdam(net.parameters(), lr=0.1)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("build", [_layers, _blocks])
def test_of_another_network_is_refused_before_anything_is_loaded(build: Any, kind: str) -> None:
    net, other = build(16), build(24)
    trained, optimizer = _optimizer(kind, net), _optimizer(kind, other)
    net.local_step(X, TARGET, trained)
    first = r"the saved `.*` is \((1, )?16, \d+\), its parameter \((1, )?24, \d+\): load"
    with pytest.raises(ValueError, match=first):
        optimizer.load_state_dict(trained.state_dict())
    assert not optimizer.state
    again = _optimizer(kind, net)
    again.load_state_dict(copy.deepcopy(trained.state_dict()))
    for parameter in net.parameters():
        for name, value in trained.state[parameter].items():
            assert torch.equal(again.state[parameter][name], value)


@pytest.mark.parametrize("how", ["fused", "by gradient", "step"])
def test_of_a_weight_that_was_exchanged_is_refused_before_it_moves(how: str) -> None:
    layer = SpelaLinear(4, 8, 3, bias=False)
    optimizer = optim.LocalAdam(layer.parameters(), lr=0.1)
    layer.local_step(X, TARGET, optimizer)
    layer.weight.data = torch.ones(8, 6)
    layer.in_features = 6
    x = torch.randn(8, 6, generator=G)
    if how == "by gradient":
        layer.weight.register_hook(lambda gradient: gradient)
    learn = partial(layer.local_step, x, TARGET, optimizer)
    if how == "step":
        layer.local_loss(x, TARGET)[0].backward()
        learn = optimizer.step
    with pytest.raises(ValueError, match=r"`exp_avg.*` must be \(8, 6\) on cpu, got \(8, 4\) on"):
        learn()
    assert torch.equal(layer.weight, torch.ones(8, 6))


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_rate_in_a_tensor_that_nothing_learns_with_is_refused(kind: str) -> None:
    net = _layers(16)
    optimizer = _optimizer(kind, net)
    optimizer.param_groups[0]["lr"] = torch.tensor(float("nan"))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"`lr` must be in \[0, 3.40282e\+38\), got nan"):
        net.local_step(X, TARGET, optimizer)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("missing", ["exp_avg", "exp_avg_sq"])
def test_that_lacks_a_moment_is_refused_before_anything_moves(missing: str, bias: bool) -> None:
    net = SpelaSequential(SpelaLinear(4, 16, 3, bias=bias), SpelaLinear(16, 8, 3, bias=bias))
    optimizer = _optimizer("adam", net)
    net.local_step(X, TARGET, optimizer)
    saved = optimizer.state_dict()
    for held in saved["state"].values():
        del held[missing]
    optimizer.load_state_dict(saved)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        ValueError, match=f"`{missing} of weight` is None but its parameter is given"
    ):
        net.local_step(X, TARGET, optimizer)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("how", ["fused", "step"])
def test_second_moments_in_float16_are_refused(how: str) -> None:
    """Squares of gradients below 2e-4 are 0 there, and the step divides by their roots."""
    net = _layers(16).half()
    optimizer = _optimizer("adam", net)
    before = copy.deepcopy(net.state_dict())
    learn = partial(net.local_step, X.half(), TARGET, optimizer)
    if how == "step":
        net.local_losses(X.half(), TARGET).sum().backward()
        learn = optimizer.step
    with pytest.raises(
        ValueError, match="second moments of float16 weights would be 0: keep weights"
    ):
        learn()
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    net.local_step(X.half(), TARGET, _optimizer("sgd", net))
    assert all(value.isfinite().all() for value in net.state_dict().values())
