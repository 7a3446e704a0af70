"""Settings that a run does not read, and what would make it read them."""

from __future__ import annotations

from collections.abc import Iterator

from spela.training import RunConfig

__all__ = ["unread_settings"]

_OF_CONVOLUTIONS = (
    "kernel_size",
    "symmetric_dim",
    "projection_std",
    "groups",
    "conv_objective",
    "conv_scale",
)
_OF_SPELA = ("objective", "scale", "vectors", *_OF_CONVOLUTIONS[1:])
_OF_LINEAR_LAYERS = (
    "objective",
    "scale",
    "activation",
    "negative_slope",
    "init",
    "bias_init",
    "normalize_input",
    "dropout",
)
_OF_BLOCKS = (
    "readout",
    "head_channels",
    "head_hidden",
    "projection",
    "similarity",
    "head_weight_decay",
)


def unread_settings(config: RunConfig) -> dict[str, str]:
    """The settings that change nothing in a run, given its other settings.

    Args:
        config: The run's settings.

    Returns:
        By name, what they are for.

    Example:
        >>> from spela.experiments.recipes import make_config
        >>> unread_settings(make_config("digits", "best"))["momentum"]
        'of optimizer sgd'
    """
    found: dict[str, str] = {}
    for name, purpose in _unread(config):
        found.setdefault(name, purpose)
    return found


def _unread(config: RunConfig) -> Iterator[tuple[str, str]]:
    if config.network:
        yield from _unread_by_network(config)
    else:
        yield from ((name, "of blocks") for name in _OF_BLOCKS)
        yield from _unread_by_layers(config)
    if config.objective != "softmax":
        yield "scale", "of objective softmax"
    if config.conv_objective != "softmax":
        yield "conv_scale", "of conv_objective softmax"
    if config.activation not in ("leaky_relu", "prelu"):
        yield "negative_slope", "of activation leaky_relu or prelu"
    if config.optimizer != "sgd":
        yield "momentum", "of optimizer sgd"
    if config.schedule != "drop":
        yield "lr_drop", "of schedule drop"


def _unread_by_network(config: RunConfig) -> Iterator[tuple[str, str]]:
    of_heads = ("objective", "scale", "vectors", "projection_std", *_OF_BLOCKS)
    read: tuple[str, ...] = of_heads
    if config.blocks == "conv":
        read = ("symmetric_dim", "conv_objective", "conv_scale")
        yield "init", "of backprop's output layer"
        yield "dropout", "of blocks"
    if config.method == "backprop" or config.blocks == "conv":
        yield from ((name, "of blocks") for name in of_heads)
    elif config.method in ("mono", "predsim", "classifier"):
        yield "init", "of backprop's output layer"
        layers = ("head_channels", "head_hidden") if config.method == "classifier" else ()
        for name in of_heads:
            if name not in ("readout", "similarity", "head_weight_decay", *layers):
                yield name, f"of SPELA's heads, not of {config.method}'s"
        if config.method == "mono":
            yield "similarity", "of predsim and SPELA"
    else:
        yield "init", "of backprop's output layer"
    yield from ((name, "of convolutions") for name in _OF_CONVOLUTIONS if name not in read)
    own = ("objective", "scale", "init", "dropout")
    yield from ((name, "of linear layers") for name in _OF_LINEAR_LAYERS if name not in own)
    if config.network == "vit":
        yield from (
            (name, "of networks whose parts give maps") for name in ("readout", "head_channels")
        )
    yield "input_dropout", "of linear layers and convolutions by size"


def _unread_by_layers(config: RunConfig) -> Iterator[tuple[str, str]]:
    if not config.channels:
        yield from ((name, "of convolutions") for name in _OF_CONVOLUTIONS)
    if config.method != "spela":
        yield from ((name, f"of SPELA's layers, not of {config.method}") for name in _OF_SPELA)
    if config.method not in ("spela", "backprop"):
        yield "init", f"not of {config.method}"
    if not config.layers:
        # Of convolutions alone the baseline has activations and an output layer.
        own = ("activation", "negative_slope", "init") if config.method == "backprop" else ()
        yield from ((name, "of a head") for name in _OF_LINEAR_LAYERS if name not in own)
    elif len(config.layers) == 1 and not config.channels and config.method != "pepita":
        yield "dropout", "of layers after the first"
        if config.standardize:
            yield "normalize_input", "of layers after the first, whose features are standardized"
