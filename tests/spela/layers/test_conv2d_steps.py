"""Steps of SpelaConv2d are torch's steps on its loss, whoever makes them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from spela import optim
from tests.spela.fused_steps import check_layer_steps
from tests.spela.layers.small_convolutions import small_batch, small_layer


def _optimizers(kind: str) -> tuple[type, type, dict[str, Any]]:
    return {
        "sgd": (optim.LocalSGD, torch.optim.SGD, {"lr": 0.5, "weight_decay": 0.01}),
        "momentum": (optim.LocalSGD, torch.optim.SGD, {"lr": 0.2, "momentum": 0.9}),
        "nesterov": (
            optim.LocalSGD, torch.optim.SGD, {"lr": 0.2, "momentum": 0.9, "nesterov": True},
        ),
        "adam": (optim.LocalAdam, torch.optim.Adam, {"lr": 0.05, "weight_decay": 0.01}),
    }[kind]  # fmt: skip


@pytest.mark.parametrize("objective", ["mse", "softmax"])
@pytest.mark.parametrize("kind", ["sgd", "momentum", "nesterov", "adam"])
def test_local_step_equals_local_loss_and_torch_optimizer(kind: str, objective: str) -> None:
    x, target = small_batch(torch.float64)
    # Adam divides a gradient that is zero but for rounding by its own size: a conv bias's before batch
    # norm, and gamma's while beta is zero. Leave the one out, move the other; some gammas negative.
    fused = small_layer(objective=objective, bias=kind != "adam").double()
    with torch.no_grad():
        fused.norm.weight.copy_(torch.linspace(-1.5, 1.5, len(fused.norm.weight)))
        fused.norm.bias.copy_(torch.linspace(-0.2, 0.3, len(fused.norm.bias)))
    plain = copy.deepcopy(fused)
    ours_type, theirs_type, options = _optimizers(kind)
    ours = ours_type(fused.parameters(), **options)
    theirs = theirs_type(plain.parameters(), **options)
    check_layer_steps((fused, plain), (ours, theirs), x, target, rtol=1e-9)
    # The state is torch's own: an unfused step may follow a fused one.
    for layer, optimizer in ((fused, ours), (plain, theirs)):
        optimizer.zero_grad()
        layer.local_loss(x, target)[0].backward()
        optimizer.step()
    torch.testing.assert_close(fused.projection, plain.projection, rtol=1e-8, atol=1e-11)


class _Calls(TorchDispatchMode):
    """Counts the convolutions and remembers which gradients were asked of them."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0
        self.masks: list[list[bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.forwards += func is torch.ops.aten.convolution.default
        if func is torch.ops.aten.convolution_backward.default:
            self.masks.append(args[-1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fused", [True, False])
def test_one_forward_a_step_and_no_gradient_of_the_input(fused: bool) -> None:
    layer, (x, target) = small_layer(), small_batch()
    x.requires_grad_()
    make = optim.LocalAdam if fused else torch.optim.Adam
    optimizer = make(layer.parameters(), lr=0.01)
    with _Calls() as calls:
        layer.local_step(x, target, optimizer)
    assert calls.forwards == 1
    # Weight always; the bias, which batch norm takes out again, only by autograd.
    assert calls.masks == [[False, True, not fused]]
    assert int(layer.norm.num_batches_tracked) == 1


def test_any_torch_optimizer_steps_this_layer_alone() -> None:
    layer, other, (x, target) = small_layer(), small_layer(), small_batch()
    optimizer = torch.optim.RMSprop([*layer.parameters(), *other.parameters()], lr=0.01)
    before = copy.deepcopy(other.state_dict())
    loss, y = layer.local_step(x, target, optimizer)
    for name in ("weight", "norm.bias", "projection"):
        assert not torch.equal(layer.get_parameter(name), before[name]), name
        assert torch.equal(other.get_parameter(name), before[name]), name
    assert not y.requires_grad
    assert not loss.requires_grad


def test_each_parameter_may_have_its_own_group() -> None:
    layer, (x, target) = small_layer(), small_batch()
    before = copy.deepcopy(layer.state_dict())
    rest = [p for p in layer.parameters() if p is not layer.projection]
    groups = [{"params": [layer.projection], "lr": 0.0}, {"params": rest}]
    layer.local_step(x, target, optim.LocalSGD(groups, lr=1.0))
    assert torch.equal(layer.projection, before["projection"])
    assert not torch.equal(layer.weight, before["weight"])


def test_frozen_parameters_stay() -> None:
    x, target = small_batch()
    layer = small_layer().requires_grad_(False)
    before = copy.deepcopy(layer.state_dict())
    _loss, y = layer.local_step(x, target, optim.LocalSGD([nn.Parameter(torch.zeros(1))], lr=1.0))
    for name, _ in layer.named_parameters():
        assert torch.equal(layer.get_parameter(name), before[name]), name
    torch.testing.assert_close(y, layer(x))
    half = small_layer()
    half.projection.requires_grad_(False)
    half.local_step(x, target, optim.LocalSGD(half.parameters(), lr=1.0))
    assert torch.equal(half.projection, before["projection"])
    assert not torch.equal(half.weight, before["weight"])


@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_a_layer_in_16_bits_takes_torch_s_step(kind: str) -> None:
    layer, (x, target) = small_layer().bfloat16(), small_batch()
    twin, before = copy.deepcopy(layer), layer.weight.clone()
    layer.local_step(
        x.bfloat16(), target, getattr(optim, f"Local{kind}")(layer.parameters(), lr=1e-2)
    )
    twin.local_step(
        x.bfloat16(),
        target,
        getattr(torch.optim, kind)(twin.parameters(), lr=1e-2, fused=kind == "Adam"),
    )
    assert not torch.equal(layer.weight, before)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
