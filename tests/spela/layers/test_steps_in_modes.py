"""Where a local step learns: under every mode of torch, in the same bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from spela import SpelaConv2d, SpelaLinear, SpelaSequential, optim
from spela.streaming import StreamingClassifier
from tests.spela.layers.step_networks import (
    IMAGES,
    NETS,
    OPTIMIZERS,
    ROWS,
    TARGET,
    conv_net,
    linear_net,
    seeded_step,
)
from tests.spela.torch_settings import gradients_off


@contextmanager
def _gradients_on_in_inference_mode() -> Iterator[None]:
    with torch.inference_mode(), torch.enable_grad():
        yield


MODES = {
    "inference mode": torch.inference_mode,
    "gradients on in inference mode": _gradients_on_in_inference_mode,
    "no_grad": torch.no_grad,
    "gradients off": gradients_off,
}


def _state(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [*net.state_dict().values(), *(v for v in values if isinstance(v, Tensor))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", NETS)
def test_a_step_learns_the_same_bits_in_every_mode_and_goes_on_outside(
    kind: str, name: str, mode: str
) -> None:
    build, x = NETS[kind]
    nets = [build(), build()]
    optimizers = [OPTIMIZERS[name](net.parameters()) for net in nets]
    before = copy.deepcopy(nets[0].state_dict())
    with MODES[mode]():
        inside = [seeded_step(nets[0], x.clone(), optimizers[0]) for _ in range(2)]
        inside.append(seeded_step(nets[0], x, optimizers[0]))  # made outside
    inside.append(seeded_step(nets[0], x, optimizers[0]))
    outside = [seeded_step(nets[1], x.clone(), optimizers[1]) for _ in range(4)]
    assert torch.equal(torch.stack(inside), torch.stack(outside))
    for now, then in zip(*map(_state, nets, optimizers), strict=True):
        assert torch.equal(now, then)
        assert not now.is_inference()
    moved = {k for k, v in nets[0].state_dict().items() if not torch.equal(v, before[k])}
    trained = {k for k, p in nets[0].named_parameters() if p.requires_grad}
    # A batch norm in between is not trained; nor has a bias before a batch norm a gradient.
    idle = {"2.weight", "2.bias", "1.bias"} if "convolution" in kind else set()
    assert trained - idle <= moved
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["linear", "binary", "convolution", "backprop"])
def test_features_made_in_inference_mode_train_outside(kind: str, name: str) -> None:
    build, x = NETS[kind]
    nets = [build(), build()]
    with torch.inference_mode():
        features, target = x.clone(), TARGET.clone()
    losses = []
    for net, rows in zip(nets, (features, x.clone()), strict=True):
        optimizer = OPTIMIZERS[name](net.parameters())
        losses.append([net.local_step(rows, target, optimizer) for _ in range(2)])
    assert torch.equal(torch.stack(losses[0]), torch.stack(losses[1]))
    for now, then in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_local_losses_of_features_made_in_inference_mode(kind: str) -> None:
    build, x = NETS[kind]
    nets = [build(), build()]
    with torch.inference_mode():
        features, target = x.clone(), TARGET.clone()
    nets[0].local_losses(features, target).sum().backward()  # type: ignore[operator]
    nets[1].local_losses(x.clone(), TARGET).sum().backward()  # type: ignore[operator]
    for now, then in zip(*(net.parameters() for net in nets), strict=True):
        if then.grad is None:  # a batch norm in between
            assert now.grad is None
        else:
            assert torch.equal(now.grad, then.grad)


@pytest.mark.parametrize("build", [linear_net, conv_net])
def test_a_network_built_in_inference_mode_learns(build: Callable[[], SpelaSequential]) -> None:
    x = ROWS if build is linear_net else IMAGES
    with torch.inference_mode():
        made = build()
    nets = [build(), SpelaSequential(*made.local_layers)]
    if build is conv_net:
        nets = [SpelaSequential(net.local_layers[0]) for net in nets]
    else:
        nets = [SpelaSequential(*net.local_layers) for net in nets]
    for net in nets:
        optimizer = optim.LocalAdam(net.parameters(), 0.1)
        for _ in range(2):
            net.local_step(x, TARGET, optimizer)
        net.local_losses(x, TARGET).sum().backward()
    for now, then in zip(*(net.state_dict().values() for net in nets), strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("make", [optim.LocalSGD, torch.optim.SGD])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_parameters_made_in_inference_mode_are_refused(kind: str, make: type) -> None:
    build, x = NETS[kind]
    with torch.inference_mode():
        net = copy.deepcopy(build())
    before = [parameter.clone() for parameter in net.parameters()]
    optimizer = make(net.parameters(), lr=0.1)
    layer = next(m for m in net if isinstance(m, SpelaLinear | SpelaConv2d))
    for learner in (net, layer):
        with pytest.raises(ValueError, match=r"made under torch\.inference_mode.*outside of it"):
            learner.local_step(x, TARGET, optimizer)
    for now, then in zip(net.parameters(), before, strict=True):
        assert torch.equal(now, then)


def test_a_stream_learns_in_inference_mode() -> None:
    streams = [StreamingClassifier(SpelaSequential(*linear_net().local_layers)) for _ in range(2)]
    for number, stream in enumerate(streams):
        with torch.inference_mode(number == 0):
            for row, label in zip(ROWS.clone(), TARGET.tolist(), strict=True):
                stream.observe(row, label)
        stream.observe(ROWS, TARGET.tolist())
    for now, then in zip(*(s.net.state_dict().values() for s in streams), strict=True):
        assert torch.equal(now, then)
    assert not torch.equal(streams[0].net[0].weight, linear_net()[0].weight)
