"""Where and as what a run's networks start, and the first weights of backprop's layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from spela.training import RunConfig

__all__ = ["FLOAT32", "initialised_linear", "torch_default"]

# Device and dtype in which every network is built, whatever torch's defaults are.
FLOAT32: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}


def initialised_linear(
    width: int, size: int, config: RunConfig, generator: torch.Generator
) -> nn.Module:
    """A layer of backprop, initialised as the run says.

    Args:
        width: Inputs.
        size: Outputs.
        config: The run's settings.
        generator: Source of the weights.
    """
    layer = nn.Linear(width, size, **FLOAT32)
    if config.init == "default":
        return torch_default(layer, generator)
    with torch.no_grad():
        layer.weight.normal_(0.0, math.sqrt(2 / width), generator=generator)
        layer.bias.zero_()
    return layer


def torch_default(layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> nn.Module:
    """A layer of backprop as torch initialises it by default, drawn from a run's generator."""
    bound = 1 / math.sqrt(layer.weight[0].numel())
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        if layer.bias is not None:
            layer.bias.uniform_(-bound, bound, generator=generator)
    return layer
