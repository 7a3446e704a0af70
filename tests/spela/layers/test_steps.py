"""What a local step moves, what it leaves alone, and what makes none."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spela import SpelaBlock, SpelaConv2d, SpelaLinear, SpelaSequential, optim
from tests.spela.layers.step_networks import (
    IMAGES,
    NETS,
    OPTIMIZERS,
    ROWS,
    TARGET,
    Make,
    conv_net,
    linear_net,
    seeded_step,
)


def test_a_gradient_that_reaches_nothing_is_an_error() -> None:
    class Detached(nn.Module):
        def forward(self, latent: Tensor) -> Tensor:
            return latent.detach()

    layer = SpelaLinear(6, 16, 3, bias=False)
    parametrize.register_parametrization(layer, "weight", Detached())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="no gradient reaches the parameters"):
        layer.local_step(ROWS, TARGET, optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", NETS)
def test_what_is_not_the_layers_stays(kind: str, name: str) -> None:
    build, x = NETS[kind]
    net, head = build(), nn.Linear(4, 2)
    optimizer = OPTIMIZERS[name]([*net.parameters(), *head.parameters()])
    first = next(p for p in net.parameters() if p.requires_grad)

    def backward() -> None:
        head(torch.ones(3, 4)).sum().backward()

    backward()
    optimizer.step()  # momentum and weight decay would move the head without a gradient
    optimizer.zero_grad()
    backward()
    first.grad = torch.full_like(first, 7.0)
    kept = copy.deepcopy(head.state_dict())
    gradients = [(p, p.grad, p.grad.clone()) for p in (*head.parameters(), first)]
    start = [p.detach().clone() for p in net.parameters()]
    seeded_step(net, x, optimizer)
    for key, value in head.state_dict().items():
        assert torch.equal(value, kept[key]), key
    for parameter, gradient, value in gradients:
        assert parameter.grad is gradient
        assert torch.equal(gradient, value)
    assert sum(p.grad is not None for group in optimizer.param_groups for p in group["params"]) == 3
    # The pending gradient of its own had no part in the step.
    other = build()
    for parameter, value in zip(other.parameters(), start, strict=True):
        assert torch.equal(parameter, value)
    seeded_step(other, x, OPTIMIZERS[name](other.parameters()))
    for now, then in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(now, then)
    optimizer.step()
    assert not torch.equal(head.weight, kept["weight"])


def test_gradients_come_back_where_a_step_fails() -> None:
    net, head = SpelaSequential(SpelaLinear(6, 16, 3)), nn.Linear(4, 2)
    optimizer = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.1)
    head(torch.ones(3, 4)).sum().backward()
    gradient = head.weight.grad

    def fail(*_: object) -> None:
        raise OSError("no space")

    optimizer.register_step_pre_hook(fail)
    with pytest.raises(OSError, match="no space"):
        net.local_step(ROWS, TARGET, optimizer)
    assert head.weight.grad is gradient
    assert net[0].weight.grad is None


class _Sum(nn.Module):
    """A weight beside what is added to it, as low-rank updates are: both get one gradient, one tensor."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        first, second = (torch.randn(8, 6, generator=g, dtype=torch.float64) for _ in range(2))
        self.first, self.second = nn.Parameter(first), nn.Parameter(second.reshape(2, 4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.first + self.second.view(8, 6)).T


@pytest.mark.parametrize("fused", [False, True])
def test_parameters_with_one_gradient_each_get_it_once(fused: bool) -> None:
    x = ROWS.double()
    block = SpelaBlock(_Sum(), 3, x, generator=torch.Generator().manual_seed(0))
    other = copy.deepcopy(block)
    rule = {"lr": 0.1, "momentum": 0.9}
    ours = (
        optim.LocalSGD(block.parameters(), **rule)
        if fused
        else torch.optim.SGD(block.parameters(), **rule, nesterov=True, foreach=True)
    )
    theirs = torch.optim.SGD(other.parameters(), **rule, nesterov=not fused)
    for _ in range(3):
        block.local_step(x, TARGET, ours)
        loss, _ = other.local_loss(x, TARGET)
        theirs.zero_grad()
        loss.backward()
        theirs.step()
    for mine, plain in zip(block.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, plain)


@pytest.mark.parametrize("kind", ["mono-forward", "forward-forward", "pepita", "backprop"])
def test_a_frozen_parameter_of_a_rival_stays(kind: str) -> None:
    build, x = NETS[kind]
    net = build()
    frozen, learning = [m.weight for m in net if hasattr(m, "weight")]
    frozen.requires_grad_(False)
    before = frozen.clone(), learning.clone()
    seeded_step(net, x, torch.optim.SGD(net.parameters(), lr=0.1))
    assert torch.equal(frozen, before[0])
    assert not torch.equal(learning, before[1])


@pytest.mark.parametrize("build", [linear_net, conv_net])
@pytest.mark.parametrize("make", [optim.LocalAdam, optim.LocalSGD, torch.optim.Adam])
def test_an_optimizer_without_a_later_layer_changes_nothing(
    make: type, build: Callable[[], SpelaSequential]
) -> None:
    net, x = build(), ROWS if build is linear_net else IMAGES
    before = copy.deepcopy(net.state_dict())
    optimizer = make(net.local_layers[0].parameters(), lr=0.1)
    with pytest.raises(ValueError, match="does not hold a parameter of shape"):
        net.local_step(x.clone(), TARGET, optimizer)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not optimizer.state


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: torch.optim.LBFGS(p), ValueError, "LBFGS calls the loss again.*local_losses"),
        (lambda p: torch.optim.SparseAdam(p), ValueError, "SparseAdam takes sparse gradients only"),
        (lambda p: None, TypeError, "`optimizer` must be an optimizer.*got NoneType"),
        (
            lambda p: torch.optim.lr_scheduler.StepLR(torch.optim.SGD(p, 0.1), 1),
            TypeError,
            "got StepLR",
        ),
    ],
    ids=["LBFGS", "SparseAdam", "None", "scheduler"],
)
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_what_cannot_make_a_local_step_is_refused(
    kind: str, make: Make, error: type[Exception], message: str
) -> None:
    build, x = NETS[kind]
    net = build()
    before = copy.deepcopy(net.state_dict())
    optimizer = make(list(net.parameters()))
    layer = next(m for m in net if isinstance(m, SpelaLinear | SpelaConv2d))
    for learner in (net, layer):
        with pytest.raises(error, match=message):
            learner.local_step(x.clone(), TARGET, optimizer)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("kind", ["linear", "projection"])
def test_a_refused_batch_is_no_step_of_adams_count(kind: str) -> None:
    x, target = torch.randn(6, 4), torch.arange(6) % 3
    if kind == "linear":
        layer: SpelaLinear | SpelaBlock = SpelaLinear(4, 8, 3)
    else:
        layer = SpelaBlock(nn.Flatten(), 3, x)
    optimizer = optim.LocalAdam(layer.parameters(), lr=0.1)
    layer.local_step(x, target, optimizer)
    with pytest.raises(ValueError, match="label"):
        layer.local_step(x, target + 3, optimizer)
    with pytest.raises(ValueError, match="4"):
        layer.local_step(torch.randn(6, 5), target, optimizer)
    counts = {float(state["step"]) for state in optimizer.state.values()}
    assert counts == {1.0}


@pytest.mark.parametrize("name", ["LocalSGD", "LocalAdam"])
@pytest.mark.parametrize("kind", ["linear", "convolution", "block"])
def test_state_of_another_shape_is_refused_before_anything_moves(kind: str, name: str) -> None:
    build, x = NETS["linear" if kind == "block" else kind]
    net: nn.Module = build()
    if kind == "block":
        net = SpelaSequential(SpelaBlock(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), 3, x))
    layer = net.local_layers[0]
    for parameter in list(layer.parameters()):
        optimizer = OPTIMIZERS[name](net.parameters())
        net.local_step(x, TARGET, optimizer)
        state = optimizer.state[parameter]
        held = next(key for key in ("momentum_buffer", "exp_avg") if key in state)
        state[held], word = torch.zeros(3, 7), held.removesuffix("_buffer")
        before = {key: value.clone() for key, value in net.state_dict().items()}
        counts = [float(s["step"]) for s in optimizer.state.values() if "step" in s]
        with pytest.raises(ValueError, match=rf"`{word}.*` must be .*, got \(3, 7\)"):
            net.local_step(x, TARGET, optimizer)
        for key, value in net.state_dict().items():
            assert torch.equal(value, before[key]), key
        assert counts == [float(s["step"]) for s in optimizer.state.values() if "step" in s]
