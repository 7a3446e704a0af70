"""From a run's settings to the network of a rival method: Forward-Forward, PEPITA or Mono-Forward."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from spela.baselines import (
    BackpropSequential,
    ForwardForwardLayer,
    ForwardForwardSequential,
    MonoForwardLayer,
    MonoForwardSequential,
    PepitaSequential,
)
from spela.baselines.hidden import HiddenLayer
from spela.experiments.initial import FLOAT32
from spela.layers import RowNorm
from spela.network import SpelaSequential
from spela.training import RunConfig

__all__ = ["Network", "build_rival"]

Network = (
    SpelaSequential
    | BackpropSequential
    | ForwardForwardSequential
    | MonoForwardSequential
    | PepitaSequential
)

_HE = math.sqrt(6)


def build_rival(
    config: RunConfig, sample_shape: tuple[int, ...], num_classes: int, generator: torch.Generator
) -> Network:
    """The network of a run whose method is ff, pepita or mono: the hidden layers of the others.

    Args:
        config: The run's settings.
        sample_shape: Shape of one input; flattened to its features.
        num_classes: C.
        generator: Source of everything random in it.

    Returns:
        Flatten and, for every size in config.layers, [RowNorm,] [Dropout,] and the method's layer; for
        pepita also an output layer of C logits.

    Raises:
        ValueError: If an activation is not for the method, or there is no room for Forward-Forward's label.
    """

    def hidden(inputs: int, size: int) -> nn.Module:
        if config.method == "ff":
            return ForwardForwardLayer(
                inputs,
                size,
                activation=config.activation,
                negative_slope=config.negative_slope,
                gain=_HE,  # goodness starts at the threshold: samples of both kinds can move
                generator=generator,
                **FLOAT32,
            )
        if config.method == "mono":
            return MonoForwardLayer(
                inputs,
                size,
                num_classes,
                activation=config.activation,
                negative_slope=config.negative_slope,
                generator=generator,
                **FLOAT32,
            )
        return HiddenLayer(
            inputs,
            size,
            bias=False,
            activation=config.activation,
            negative_slope=config.negative_slope,
            gain=_HE,
            generator=generator,
            **FLOAT32,
        )

    features = math.prod(sample_shape)
    modules, width = _stack(config, features, hidden)
    if config.method == "ff":
        net = ForwardForwardSequential(*modules, num_classes=num_classes)
        label = torch.zeros(1, dtype=torch.int64, device="cpu")
        net.embed(torch.zeros(1, features, **FLOAT32), label)  # is there room?
        return net
    if config.method == "mono":
        return MonoForwardSequential(*modules)
    output = HiddenLayer(
        width,
        num_classes,
        bias=False,
        activation="identity",
        gain=_HE,
        generator=generator,
        **FLOAT32,
    )
    return PepitaSequential(*modules, output, generator=generator)


def _stack(
    config: RunConfig, width: int, hidden: Callable[[int, int], nn.Module]
) -> tuple[list[nn.Module], int]:
    modules: list[nn.Module] = [nn.Flatten()]
    if config.input_dropout > 0:
        modules.append(nn.Dropout(config.input_dropout))
    for index, size in enumerate(config.layers):
        if (norm := config.norm_before(index)) != "none":
            modules.append(RowNorm(norm))
        if config.dropout > 0 and index > 0:
            modules.append(nn.Dropout(config.dropout))
        modules.append(hidden(width, size))
        width = size
    if config.method == "pepita" and config.dropout > 0:
        modules.append(nn.Dropout(config.dropout))  # published: after every hidden layer
    return modules, width
