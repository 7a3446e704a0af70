"""The one table of benchmark cases: shapes and named baselines that every group measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spela import SpelaLinear, SpelaSequential
from spela.baselines import BackpropSequential
from spela.optim import LocalSGD

__all__ = ["CASES", "VARIANTS", "Case", "make_step"]

LEARNING_RATE = 0.1


@dataclass(frozen=True)
class Case:
    """One network and batch.

    Attributes:
        name: Readable id.
        sizes: Input features, then the outputs of every layer.
        batch: Samples a step.
        classes: C.
    """

    name: str
    sizes: tuple[int, ...]
    batch: int
    classes: int = 10


CASES = (
    Case("784-1024-10/b50", (784, 1024, 10), 50),
    Case("784-1024x3/b50", (784, 1024, 1024, 1024), 50),
    Case("784-1024x3/b512", (784, 1024, 1024, 1024), 512),
)


def make_data(case: Case) -> tuple[Tensor, Tensor]:
    """A batch of random inputs and labels, the same for every variant."""
    g = torch.Generator().manual_seed(0)
    target = torch.randint(case.classes, (case.batch,), generator=g)
    return torch.rand(case.batch, case.sizes[0], generator=g), target


def _spela_network(case: Case) -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    pairs = zip(case.sizes[:-1], case.sizes[1:], strict=True)
    return SpelaSequential(*(SpelaLinear(i, o, case.classes, generator=g) for i, o in pairs))


def spela_step(case: Case) -> Callable[[], Tensor]:
    """Our network step: every layer's forward, gradient and SGD update."""
    x, target = make_data(case)
    net = _spela_network(case)
    optimizer = LocalSGD(net.parameters(), lr=LEARNING_RATE)
    return lambda: net.local_step(x, target, optimizer)


def autograd_spela_step(case: Case) -> Callable[[], Tensor]:
    """Baseline `autograd_spela`: the published formulation, one autograd graph and SGD a layer."""
    x, target = make_data(case)
    net = _spela_network(case)
    layers = [module for module in net if isinstance(module, SpelaLinear)]
    optimizers = [torch.optim.SGD(layer.parameters(), lr=LEARNING_RATE) for layer in layers]

    def step() -> Tensor:
        h, losses = x, []
        for layer, optimizer in zip(layers, optimizers, strict=True):
            y = layer(h)
            cosine = nn.functional.cosine_similarity(y, layer.vectors[target], dim=1)
            loss = torch.log(2 - cosine).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            h = y.detach()
        return torch.stack(losses)

    return step


def backprop_step(case: Case) -> Callable[[], Tensor]:
    """Baseline `backprop`: cross-entropy through the same layers, eager, SGD."""
    torch.manual_seed(0)
    x, target = make_data(case)
    modules: list[nn.Module] = []
    for i, o in zip(case.sizes[:-1], case.sizes[1:], strict=True):
        modules += [nn.Linear(i, o), nn.LeakyReLU(1e-3)]
    modules.append(nn.Linear(case.sizes[-1], case.classes))
    net = BackpropSequential(*modules)
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    return lambda: net.local_step(x, target, optimizer)


VARIANTS: dict[str, Callable[[Case], Callable[[], Tensor]]] = {
    "spela": spela_step,
    "autograd_spela": autograd_spela_step,
    "backprop": backprop_step,
}


def make_step(variant: str, case: Case) -> Callable[[], Tensor]:
    """A step of a variant on a case, ready to be called again and again."""
    return VARIANTS[variant](case)
