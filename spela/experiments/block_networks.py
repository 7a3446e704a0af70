"""From a run's settings to a network by name: in blocks, by a rival on the same blocks, or end to end."""

from __future__ import annotations

import torch
from torch import nn

from spela.baselines import BackpropSequential, DeeplySupervisedSequential, LinearHeadBlock
from spela.bodies import build_body
from spela.conversion import convert
from spela.cutting import cut_network
from spela.experiments.initial import FLOAT32, initialised_linear
from spela.experiments.rivals import Network
from spela.layers.modes import probing
from spela.network import SpelaSequential
from spela.training import RunConfig

__all__ = ["build_named_network"]


def build_named_network(
    config: RunConfig, sample_shape: tuple[int, ...], num_classes: int, generator: torch.Generator
) -> Network:
    """The network of a run that names one: every method has the same body, and cuts it in the same places.

    Args:
        config: The run's settings, with a network.
        sample_shape: (C, H, W) of an image.
        num_classes: C.
        generator: Source of class vectors and heads; the body's weights come from the run's seed.

    Returns:
        A `SpelaSequential` of blocks or of SpelaConv2d layers, or for backprop the body and a linear output
        layer.

    Raises:
        ValueError: If the samples do not fit the network, or it has fewer places to cut at than asked for.
    """
    body = build_body(config.network, sample_shape, config.width, config.seed, **FLOAT32)
    sample = torch.zeros(2, *sample_shape, **FLOAT32)
    if config.method == "backprop":
        with probing(body), torch.no_grad():
            features = body(sample).shape[1]
        modules = [nn.Dropout(config.dropout)] if config.dropout > 0 else []
        output = initialised_linear(features, num_classes, config, generator)
        return BackpropSequential(*body, *modules, output)
    if config.blocks == "conv":
        return convert(
            body[:-1],  # without the Flatten: the last layer answers by its map
            num_classes,
            sample,
            objective=config.conv_objective,
            conv_scale=config.conv_scale,
            symmetric_dim=config.symmetric_dim,
            generator=generator,
        )
    blocks = config.blocks if config.blocks == "layers" else int(config.blocks)
    if config.method in ("mono", "predsim", "classifier"):
        return _linear_heads(
            config, cut_network(body, sample, blocks), sample, num_classes, generator
        )
    net = convert(
        body,
        num_classes,
        sample,
        blocks=blocks,
        objective=config.objective,
        scale=config.scale,
        readout=config.readout,
        channels=config.head_channels,
        hidden=config.head_hidden,
        projection=config.projection,
        projection_std=config.projection_std,
        similarity=config.similarity,
        dropout=config.dropout,
        vectors=config.vectors,
        generator=generator,
    )
    return DeeplySupervisedSequential(*net) if config.method == "supervised" else net


def _linear_heads(
    config: RunConfig,
    parts: list[nn.Module],
    x: torch.Tensor,
    num_classes: int,
    generator: torch.Generator,
) -> SpelaSequential:
    layers = {"channels": config.head_channels, "hidden": config.head_hidden}
    blocks = []
    for part in parts:
        block = LinearHeadBlock(
            part,
            num_classes,
            x,
            readout=config.readout,
            similarity=0.0 if config.method == "mono" else config.similarity,
            dropout=config.dropout,
            generator=generator,
            **(layers if config.method == "classifier" else {}),
        )
        with probing(part), torch.no_grad():
            x = part(x)
        blocks.append(block)
    return SpelaSequential(*blocks)
