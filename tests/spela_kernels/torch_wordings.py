"""Activations, objectives and SGD in torch's own words, which the oracles of both ops are held against.

A row of `OBJECTIVES` or `ACTIVATIONS` gets its wording here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

functional = torch.nn.functional

# (z, slope of leaky_relu or prelu) -> y
ACTIVATION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "leaky_relu": lambda z, slope: functional.leaky_relu(z, float(slope)),
    "relu": lambda z, slope: functional.relu(z),
    "tanh": lambda z, slope: torch.tanh(z),
    "elu": lambda z, slope: functional.elu(z),
    "gelu": lambda z, slope: functional.gelu(z),
    "identity": lambda z, slope: z,
    "prelu": functional.prelu,
}

# Of the cosine to the label's vector, as the spec's table has them.
LABEL_LOSS: dict[str, Callable[[Tensor], Tensor]] = {
    "log": lambda c: torch.log(2 - c),
    "cosine": lambda c: -c,
    "angular": lambda c: torch.log(1 + torch.acos(c) / math.pi),
    "euclidean": lambda c: torch.log(1 + torch.sqrt(2 - 2 * c)),
    "mse": lambda c: (1 - c) ** 2,
}

# Of the scores (B, C), the labels (B,) and the scale: a loss a sample.
CLASS_LOSS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "softmax": lambda s, target, scale: functional.cross_entropy(
        scale * s, target, reduction="none"
    ),
}

# What torch.optim.SGD and both ops' own step take.
SGD: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
}
