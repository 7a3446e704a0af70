"""From a run's settings and its data's shapes to a network and its optimizer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from spela.baselines import BackpropSequential
from spela.data import Dataset
from spela.experiments.block_networks import build_named_network
from spela.experiments.initial import FLOAT32, initialised_linear, torch_default
from spela.experiments.rivals import Network, build_rival
from spela.layers import (
    PatchWhitening,
    RowNorm,
    SpelaBlock,
    SpelaConv2d,
    SpelaLinear,
    Standardize,
    with_binary_weight,
)
from spela.network import SpelaSequential
from spela.optim import LocalAdam, LocalSGD
from spela.training import RunConfig, parse_groups
from spela.vectors import Groups, class_grouping
from spela_kernels.activations import get_activation

__all__ = ["build_network", "build_optimizer", "least_weights", "network_for"]

POOL = 2


class _Activation(nn.Module):
    """An activation of the table as a module, for the baselines."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.name = config.activation
        slope = config.negative_slope
        self.slope = (
            nn.Parameter(torch.full((1,), slope, **FLOAT32)) if self.name == "prelu" else slope
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """phi(z)."""
        return get_activation(self.name).forward(z, self.slope)


def network_for(config: RunConfig, dataset: Dataset) -> Network:
    """The network a run starts from: `build_network`, its input scaled by the training samples if asked for.

    Args:
        config: The run's settings.
        dataset: Its data.

    Raises:
        ValueError: As `build_network`.
    """
    net = build_network(config, dataset.sample_shape, dataset.num_classes)
    for module in net:
        if isinstance(module, (Standardize, PatchWhitening)):
            module.fit(dataset.train_x)
    return net


def build_network(config: RunConfig, sample_shape: tuple[int, ...], num_classes: int) -> Network:
    """The network a run trains, initialised from the run's seed.

    Args:
        config: The run's settings.
        sample_shape: Shape of one input; flattened to its features.
        num_classes: C.

    Returns:
        A `SpelaSequential` of SpelaConv2d for every entry of channels, Flatten and, for every linear
        layer, SpelaLinear (with binary weights if asked for) after RowNorm and Dropout, if any; or the
        backprop baseline with the same hidden layers and an output layer of C logits; or another rival
        (`build_rival`). Dropout on the network's input stands first. A network by name is a
        `SpelaSequential` of SpelaBlock, or the baseline with an output layer. In front of all of it stands
        `Standardize` or `PatchWhitening`, if asked for, which `network_for` fits.

    Raises:
        ValueError: If convolutions are asked for samples that are no images, or too small ones; or if a
            size is 1.
    """
    _check_sizes(config)
    whitening = _whitening(sample_shape) if config.whiten else None
    shape = (whitening.outputs, *sample_shape[1:]) if whitening else sample_shape
    with torch.random.fork_rng(devices=[]):  # torch's layers draw before they are drawn anew
        net = _learning_part(config, shape, num_classes)
    if whitening:
        net.insert(0, whitening)
    if config.standardize:
        net.insert(0, Standardize(sample_shape, **FLOAT32))
    return net


def _whitening(sample_shape: tuple[int, ...]) -> PatchWhitening:
    if len(sample_shape) != 3:
        raise ValueError(
            f"whiten needs images (C, H, W), the data has samples of shape {sample_shape}"
        )
    return PatchWhitening(sample_shape[0], **FLOAT32)


def _learning_part(config: RunConfig, sample_shape: tuple[int, ...], num_classes: int) -> Network:
    generator = torch.Generator().manual_seed(config.seed)
    if config.network:
        return build_named_network(config, sample_shape, num_classes, generator)
    if config.method not in ("spela", "backprop"):
        return build_rival(config, sample_shape, num_classes, generator)
    modules, shape = _convolutions(config, sample_shape, num_classes, generator)
    if config.input_dropout > 0:
        modules.insert(0, nn.Dropout(config.input_dropout))
    width = math.prod(shape)
    if config.layers or not config.channels or config.method == "backprop":
        modules.append(nn.Flatten())
    for index, size in enumerate(config.layers):
        if (norm := config.norm_before(index)) != "none":
            modules.append(RowNorm(norm))
        if config.dropout > 0 and (index > 0 or config.channels):
            modules.append(nn.Dropout(config.dropout))
        if config.method == "backprop":
            modules += [initialised_linear(width, size, config, generator), _Activation(config)]
        else:
            layer = SpelaLinear(
                width,
                size,
                num_classes,
                activation=config.activation,
                negative_slope=config.negative_slope,
                objective=config.objective,
                scale=config.scale,
                vectors=config.vectors,
                init="kaiming_normal" if config.init == "kaiming-normal" else "kaiming_uniform",
                bias_init="uniform" if config.bias_init == "uniform" else "zeros",
                generator=generator,
                **FLOAT32,
            )
            modules.append(with_binary_weight(layer) if config.binarise == "all" else layer)
        width = size
    if config.method == "backprop":
        output = initialised_linear(width, num_classes, config, generator)
        return BackpropSequential(*modules, output)
    return SpelaSequential(*modules)


def _check_sizes(config: RunConfig) -> None:
    """In one dimension no direction can turn."""
    dims = (config.symmetric_dim,) if config.channels else ()
    for name, sizes in (("layers", config.layers), ("symmetric_dim", dims)):
        if config.method == "spela" and 1 in sizes:
            raise ValueError(f"{name} 1 has no direction to turn: use 2 or more")


def least_weights(config: RunConfig, sample_shape: tuple[int, ...]) -> int:
    """A lower bound on the numbers in the network's weights, from sizes alone: nothing is allocated.

    Args:
        config: The run's settings.
        sample_shape: Shape of one input.

    Returns:
        The count; that of a network as `build_network` makes it is at least as large.

    Raises:
        ValueError: If the shape has an axis without extent.

    Example:
        >>> from spela.experiments.recipes import make_config
        >>> least_weights(make_config("digits", layers=(64, 10)), (1, 8, 8))
        4736
    """
    if not sample_shape or min(sample_shape) < 1:
        raise ValueError(f"a sample of shape {sample_shape} holds nothing")
    if config.network:  # each has a matrix of its width by at least its width
        head = config.projection if config.method == "spela" else 0
        return config.width**2 + head
    total, width = 0, math.prod(sample_shape)
    for kernels in config.channels:
        total += kernels * config.kernel_size**2
        if config.method == "spela":
            total += kernels * config.symmetric_dim
        width = kernels
    for size in config.layers:
        total, width = total + width * size, size
    return total


def _convolutions(
    config: RunConfig,
    sample_shape: tuple[int, ...],
    num_classes: int,
    generator: torch.Generator,
) -> tuple[list[nn.Module], tuple[int, ...]]:
    """The convolution layers, each with batch norm and a 2 x 2 max pool; the shape they leave."""
    if config.channels and len(sample_shape) != 3:
        raise ValueError(
            f"convolutions need images (C, H, W), the data has samples of shape {sample_shape}: "
            "use --model mlp"
        )
    modules: list[nn.Module] = []
    shape, size = sample_shape, config.kernel_size
    groups: Groups = parse_groups(config.groups, num_classes)
    if config.share_groups:  # narrower layers take the first kernels'
        groups = class_grouping(max(config.channels), num_classes, groups, generator=generator)
    for kernels in config.channels:
        channels, height, width = shape
        pooled = (height - size + 1) // POOL, (width - size + 1) // POOL
        # One pixel a kernel has no direction that SPELA could turn.
        least = 1 if config.method == "backprop" else 2
        if min(pooled) < 1 or pooled[0] * pooled[1] < least:
            raise ValueError(
                f"maps of {height} x {width} are too small for a {size} x {size} convolution and a "
                f"{POOL} x {POOL} pool, which must leave {least} of their pixels: use fewer convolutions "
                "(numbers in --channels), a smaller --kernel-size or a larger --resize"
            )
        if config.method == "backprop":
            modules += [
                torch_default(nn.Conv2d(channels, kernels, size, **FLOAT32), generator),
                nn.BatchNorm2d(kernels, **FLOAT32),
                _Activation(config),
                nn.MaxPool2d(POOL),
            ]
        else:
            layer = SpelaConv2d(
                channels,
                kernels,
                size,
                num_classes,
                pooled,
                symmetric_dim=config.symmetric_dim,
                projection_std=config.projection_std,
                grouping=groups[:kernels] if isinstance(groups, torch.Tensor) else groups,
                pool_size=POOL,
                objective=config.conv_objective,
                scale=config.conv_scale,
                vectors=config.vectors,
                generator=generator,
                **FLOAT32,
            )
            modules.append(layer)
        shape = (kernels, *pooled)
    return modules, shape


def build_optimizer(config: RunConfig, net: nn.Module) -> torch.optim.Optimizer:
    """The run's optimizer over all parameters of `net`; heads with a weight decay of their own are a group.

    Args:
        config: The run's settings.
        net: The network, already on its device; what is on the meta device, another process trains.

    Returns:
        `LocalSGD` or `LocalAdam`, which are torch's SGD and Adam for a backprop network, or AdamW.
    """
    groups = _groups(config, net)
    decay = config.weight_decay
    if config.optimizer == "sgd":
        return LocalSGD(groups, config.lr, momentum=config.momentum, weight_decay=decay)
    if config.optimizer == "adam":
        return LocalAdam(groups, config.lr, weight_decay=decay)
    return torch.optim.AdamW(groups, config.lr, weight_decay=decay, fused=True)


def _groups(config: RunConfig, net: nn.Module) -> list[dict[str, Any]]:
    own = [parameter for parameter in net.parameters() if not parameter.is_meta]
    if config.head_weight_decay is None:
        return [{"params": own}]
    blocks = [module for module in net.modules() if isinstance(module, SpelaBlock)]
    heads = {id(parameter) for block in blocks for parameter in block.head_parameters()}
    return [
        {"params": [parameter for parameter in own if id(parameter) not in heads]},
        {
            "params": [parameter for parameter in own if id(parameter) in heads],
            "weight_decay": config.head_weight_decay,
        },
    ]
