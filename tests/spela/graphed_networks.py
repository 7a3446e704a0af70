"""Networks whose step may be one graph, beside copies of them that step eagerly."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spela import (
    Frozen,
    GraphedStep,
    RowNorm,
    SpelaBlock,
    SpelaConv2d,
    SpelaLinear,
    SpelaSequential,
)
from spela.baselines import BackpropSequential
from spela.optim import LocalAdam, LocalSGD
from spela_kernels import ACTIVATIONS, OBJECTIVES

Build = Callable[[torch.Generator], Any]
Optimizers = dict[str, Callable[[nn.Module], torch.optim.Optimizer]]
B, C = 6, 3


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiled calls of small stacks, which a CPU takes where nothing records operators."""
    monkeypatch.setattr("spela.network.chain_of", lambda *given: None)
    monkeypatch.setattr("spela.layers.normalize.norm_fits", lambda x: False)


def linear_net(objective: str = "log", activation: str = "leaky_relu") -> Build:
    def build(g: torch.Generator) -> SpelaSequential:
        settings: dict[str, Any] = {"objective": objective, "activation": activation}
        return SpelaSequential(
            nn.Flatten(),
            RowNorm("rms"),
            SpelaLinear(64, 9, C, generator=g, **settings),
            nn.Dropout(0.2),
            RowNorm("unit"),
            SpelaLinear(9, 5, C, generator=g, **settings),
        )

    return build


def conv_net(objective: str, **settings: Any) -> Build:
    def build(g: torch.Generator) -> SpelaSequential:
        conv = {"symmetric_dim": 4, "objective": objective, "generator": g, **settings}
        return SpelaSequential(
            SpelaConv2d(1, 3, 3, C, (3, 3), **conv),
            nn.Flatten(),
            SpelaLinear(27, 5, C, generator=g),
        )

    return build


def block_net(**settings: Any) -> Build:
    def build(g: torch.Generator) -> SpelaSequential:
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        second = nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
        common = {"generator": g, "projection": 4, **settings}
        return SpelaSequential(
            SpelaBlock(first, C, torch.randn(2, 1, 8, 8), **common),
            SpelaBlock(second, C, torch.randn(2, 4, 6, 6), **common),
        )

    return build


def backprop_net(g: torch.Generator) -> BackpropSequential:
    torch.manual_seed(0)
    return BackpropSequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, C))


def frozen_net(g: torch.Generator) -> SpelaSequential:
    torch.manual_seed(0)
    backbone = Frozen(nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12)))
    return SpelaSequential(backbone, SpelaLinear(12, 5, C, generator=g))


NETWORKS: dict[str, Build] = {
    **{f"objective {name}": linear_net(objective=name) for name in OBJECTIVES},
    **{f"activation {name}": linear_net("softmax", name) for name in ACTIVATIONS},
    "convolution, a label's objective": conv_net("mse"),
    "convolution, softmax": conv_net("softmax"),
    "convolution, average pooling": conv_net("mse", pool="avg"),
    "blocks": block_net(),
    "blocks, hidden layer and convolution in the head": block_net(
        hidden=6, channels=2, dropout=0.1
    ),
    "frozen backbone": frozen_net,
}
OPTIMIZERS: Optimizers = {
    "sgd": lambda net: LocalSGD(net.parameters(), lr=0.1),
    "momentum": lambda net: LocalSGD(
        net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
    ),
    "adam": lambda net: LocalAdam(net.parameters(), lr=1e-2, weight_decay=1e-3),
}


def make_batches(count: int, size: int = B) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(5)
    return [
        (torch.randn(size, 1, 8, 8, generator=g), torch.randint(C, (size,), generator=g))
        for _ in range(count)
    ]


def rate_at(step: int) -> float:
    """A cosine schedule: a new number at every step."""
    return 0.1 * (1 + math.cos(step))


class Pair:
    """A network that steps eagerly and its copy that steps by `GraphedStep`, checked to stay the same."""

    def __init__(
        self,
        build: Build,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        device: str = "cpu",
    ) -> None:
        net = build(torch.Generator().manual_seed(1)).to(device)
        self.nets = (net, copy.deepcopy(net))
        self.optimizers = tuple(optimizer(each) for each in self.nets)
        self.graphed = GraphedStep(self.nets[1], self.optimizers[1])
        self.steps = 0

    def step(self, x: Tensor, target: Tensor) -> None:
        self.steps += 1
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(self.steps)
        torch.manual_seed(self.steps)
        expected = self.nets[0].local_step(x, target, self.optimizers[0])
        torch.manual_seed(self.steps)
        losses = self.graphed(x, target)
        assert losses.isfinite().all()
        assert torch.equal(losses, expected)
        self.check()

    def check(self) -> None:
        mine, theirs = self.nets[1].state_dict(), self.nets[0].state_dict()
        for name, value in theirs.items():
            assert torch.equal(mine[name], value), f"{name}, step {self.steps}"
        for ours, other in zip(self.nets[1].parameters(), self.nets[0].parameters(), strict=True):
            states = self.optimizers[1].state.get(ours, {}), self.optimizers[0].state.get(other, {})
            assert states[0].keys() == states[1].keys()
            for name, value in states[1].items():
                if isinstance(value, Tensor):
                    assert torch.equal(states[0][name], value), f"{name}, step {self.steps}"
        assert all(group["lr"] == rate_at(self.steps) for group in self.optimizers[1].param_groups)


def train_pair(pair: Pair, count: int, size: int = B) -> None:
    for x, target in make_batches(count, size):
        pair.step(x, target)
