"""From a run's settings and its data's shapes to a network and its optimizer."""

from __future__ import annotations

import math

import torch
from torch import nn

from spela.baselines import BackpropSequential
from spela.layers import RowNorm, SpelaLinear
from spela.network import SpelaSequential
from spela.optim import LocalAdam, LocalSGD
from spela.training import RunConfig
from spela_kernels.activations import get_activation

__all__ = ["build_network", "build_optimizer"]


class _Activation(nn.Module):
    """An activation of the table as a module, for the baselines."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.name = config.activation
        slope = config.negative_slope
        self.slope = nn.Parameter(torch.full((1,), slope)) if self.name == "prelu" else slope

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """phi(z)."""
        return get_activation(self.name).forward(z, self.slope)


def build_network(
    config: RunConfig, sample_shape: tuple[int, ...], num_classes: int
) -> SpelaSequential | BackpropSequential:
    """The network a run trains, initialised from the run's seed.

    Args:
        config: The run's settings.
        sample_shape: Shape of one input; flattened to its features.
        num_classes: C.

    Returns:
        A `SpelaSequential` of Flatten and, for every layer, [RowNorm,] [Dropout,] SpelaLinear; or the
        backprop baseline with the same hidden layers and an output layer of C logits.
    """
    generator = torch.Generator().manual_seed(config.seed)
    width = math.prod(sample_shape)
    modules: list[nn.Module] = [nn.Flatten()]
    for index, size in enumerate(config.layers):
        if config.normalize_input != "none":
            modules.append(RowNorm(config.normalize_input))
        if config.dropout > 0 and index > 0:
            modules.append(nn.Dropout(config.dropout))
        if config.method == "backprop":
            modules += [_kaiming(nn.Linear(width, size), generator), _Activation(config)]
        else:
            modules.append(
                SpelaLinear(
                    width,
                    size,
                    num_classes,
                    activation=config.activation,
                    negative_slope=config.negative_slope,
                    objective=config.objective,
                    scale=config.scale,
                    vectors=config.vectors,
                    generator=generator,
                )
            )
        width = size
    if config.method == "backprop":
        return BackpropSequential(*modules, _kaiming(nn.Linear(width, num_classes), generator))
    return SpelaSequential(*modules)


def _kaiming(linear: nn.Linear, generator: torch.Generator) -> nn.Linear:
    # torch's own default for nn.Linear, drawn from the run's generator.
    bound = 1 / math.sqrt(linear.in_features)
    with torch.no_grad():
        linear.weight.uniform_(-bound, bound, generator=generator)
        linear.bias.uniform_(-bound, bound, generator=generator)
    return linear


def build_optimizer(config: RunConfig, net: nn.Module) -> torch.optim.Optimizer:
    """The run's optimizer over all parameters of `net`.

    Args:
        config: The run's settings.
        net: The network, already on its device.

    Returns:
        `LocalSGD` or `LocalAdam`, which are torch's SGD and Adam for a backprop network, or AdamW.
    """
    parameters = list(net.parameters())
    decay = config.weight_decay
    if config.optimizer == "sgd":
        return LocalSGD(parameters, config.lr, momentum=config.momentum, weight_decay=decay)
    if config.optimizer == "adam":
        return LocalAdam(parameters, config.lr, weight_decay=decay)
    return torch.optim.AdamW(parameters, config.lr, weight_decay=decay, fused=True)
