"""Which hooks a local step calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from spela import SpelaBlock, SpelaSequential, optim
from tests.spela.layers.step_networks import (
    IMAGES,
    NETS,
    OPTIMIZERS,
    ROWS,
    TARGET,
    conv_net,
    linear_net,
)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["linear", "part frozen", "binary", "convolution"])
def test_step_hooks_are_called_once_for_each_layer(kind: str, name: str) -> None:
    build, x = NETS[kind]
    net, quiet = build(), build()
    optimizer, other = (OPTIMIZERS[name](n.parameters()) for n in (net, quiet))
    layers = net.local_layers  # type: ignore[union-attr]
    weights = [next(p for p in layer.parameters() if p.requires_grad) for layer in layers]
    seen: list[tuple[str, tuple[bool, ...]]] = []
    start = [weight.detach().clone() for weight in weights]

    def see(when: str) -> None:
        moved = (not torch.equal(w, s) for w, s in zip(weights, start, strict=True))
        seen.append((when, tuple(moved)))

    def before(hooked: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        assert hooked is optimizer
        assert args == (optimizer,)
        assert kwargs == {}
        see("before")

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(lambda *_: see("after"))
    everyone = register_optimizer_step_post_hook(lambda *_: see("global"))
    try:
        losses = net.local_step(x, TARGET, optimizer)  # type: ignore[operator]
    finally:
        everyone.remove()
    assert seen == [
        ("before", (False, False)),
        ("after", (True, False)),
        ("global", (True, False)),
        ("before", (True, False)),
        ("after", (True, True)),
        ("global", (True, True)),
    ]
    assert torch.equal(losses, quiet.local_step(x, TARGET, other))  # type: ignore[operator]
    for now, then in zip(net.parameters(), quiet.parameters(), strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_frozen_layer_calls_no_step_hooks(kind: str, name: str) -> None:
    build, x = NETS[kind]
    net = build().requires_grad_(False)
    optimizer, calls = OPTIMIZERS[name](net.parameters()), []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    assert net.local_step(x, TARGET, optimizer).isfinite().all()  # type: ignore[operator]
    assert not calls


def _block() -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8))
    return SpelaSequential(SpelaBlock(body, 3, ROWS, projection=4, generator=g))


@pytest.mark.parametrize("rule", [optim.LocalSGD, optim.LocalAdam, torch.optim.SGD])
@pytest.mark.parametrize(
    ("build", "x"),
    [(linear_net, ROWS), (conv_net, IMAGES), (_block, ROWS)],
    ids=["linear", "conv", "block"],
)
def test_hooks_of_parameters_change_their_gradients(build, x: Tensor, rule) -> None:
    """As people mask weights: every parameter that learns is watched, by every optimizer."""
    net = build()
    learns = [p for layer in net.local_layers for p in layer.parameters()]
    before = [p.detach().clone() for p in learns]
    called: list[int] = []
    for index, parameter in enumerate(learns):
        parameter.register_hook(lambda g, index=index: called.append(index) or g * 0)
    optimizer = rule(net.parameters(), lr=0.5)
    net.local_step(x, TARGET, optimizer)
    assert sorted(called) == list(range(len(learns)))
    net.local_steps(x, TARGET, optimizer, batch_size=6)
    assert sorted(called) == sorted([*range(len(learns))] * 3)
    for parameter, old in zip(learns, before, strict=True):
        assert torch.equal(parameter, old)
