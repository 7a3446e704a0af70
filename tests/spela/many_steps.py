"""A stack of layers, its batches and optimizers, for many steps in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spela import RowNorm, SpelaLinear, SpelaSequential
from spela.optim import LocalAdam, LocalSGD

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda params: LocalSGD(params, 0.1),
    "momentum": lambda params: LocalSGD(params, 0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda params: LocalSGD(params, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda params: LocalAdam(params, 1e-2, weight_decay=1e-2),
    "torch": lambda params: torch.optim.Adam(params, 1e-2),
}
RATES = [0.1, 0.05, 0.02]


def small_stack(
    *between: nn.Module, objective: str = "softmax", **settings: Any
) -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    first, second, third = (
        SpelaLinear(inputs, outputs, 5, objective=objective, generator=g, **settings)
        for inputs, outputs in ((6, 20), (20, 17), (17, 8))
    )
    return SpelaSequential(first, RowNorm("rms"), second, *between, RowNorm("unit"), third)


def some_samples(samples: int = 23) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(samples, 6, generator=g), torch.randint(5, (samples,), generator=g)


def state_of(net: SpelaSequential, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    state = [v for p in net.parameters() for v in optimizer.state[p].values()]
    return [*net.parameters(), *(v for v in state if isinstance(v, Tensor))]
