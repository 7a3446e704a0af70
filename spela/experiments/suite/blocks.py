"""Whole networks cut into blocks: accuracy against the number of blocks, and rivals on the same blocks."""

from __future__ import annotations

from typing import Any

from spela.experiments.declare import CIFAR10_COPY, Experiment, Row, in_panel

__all__ = ["BLOCKS"]

_IMAGES = ("cifar10", "fashion-mnist")
_VGG: dict[str, Any] = {"width": 16, "augment": True}
# One convolution a block leaves much to its head.
_LAYERS: dict[str, Any] = {**_VGG, "blocks": "layers", "head_channels": 64}
_RESNET: dict[str, Any] = {"width": 16, "augment": True}
_VIT: dict[str, Any] = {"width": 128, "augment": True}
# Larger than the others: what is reached in 20 epochs, not what an epoch of two minutes allows.
_CIFARNET: dict[str, Any] = {"augment": True, "weight_decay": 0.05}
# The input whitened; the weight decay was the better of two on held-out images, for both sides.
_WHITENED: dict[str, Any] = {"augment": True, "weight_decay": 0.5, "whiten": True}
# Each with a weight decay that none of those tried was better than on held-out images.
_WIDE: dict[str, Any] = {"width": 32, "augment": True, "weight_decay": 0.05}
_WIDE_LAYERS: dict[str, Any] = {**_WIDE, "weight_decay": 0.5, "head_channels": 64}


def _spela(name: str, model: str, settings: dict[str, Any], blocks: str, **more: Any) -> Row:
    return Row(name, "best", model, {**settings, "blocks": blocks}, series="SPELA", **more)


def _rival(name: str, recipe: str, settings: dict[str, Any]) -> Row:
    return Row(name, recipe, "vgg", settings, series="rivals", rival="backprop")


_CONVOLUTIONS = (
    Row("backprop", "backprop", "vgg", _VGG, series="backprop"),
    *(
        _spela(f"{count} block{'s' * (count > 1)}", "vgg", _VGG, str(count), rival="backprop")
        for count in (1, 2, 3)
    ),
    _spela("layers", "vgg", _LAYERS, "layers", rival="backprop"),
    # On 28 x 28 pixels its last map would be one pixel a kernel, which has no direction to turn.
    _spela("SpelaConv2d layers", "vgg", _VGG, "conv", data=("cifar10",)),
    _rival("layers, deep supervision", "supervised", _LAYERS),
    # What of `layers` is its heads', and what its class vectors'.
    _rival("layers, classifiers", "classifier", _LAYERS),
    _rival("layers, predsim", "predsim", {**_VGG, "blocks": "layers"}),
    _rival("layers, Mono-Forward heads", "mono", {**_VGG, "blocks": "layers"}),
)
_LARGER = (
    Row("width 32, backprop", "backprop", "vgg", _WIDE, ("fashion-mnist",), series="backprop"),
    _spela(
        "width 32, layers",
        "vgg",
        _WIDE_LAYERS,
        "layers",
        data=("fashion-mnist",),
        rival="width 32, backprop",
    ),
    Row("cifarnet, backprop", "backprop", "cifarnet", _CIFARNET, ("cifar10",), series="backprop"),
    *(
        _spela(
            f"cifarnet, {name}",
            "cifarnet",
            {**_CIFARNET, "head_channels": 64},
            blocks,
            data=("cifar10",),
            rival="cifarnet, backprop",
        )
        for name, blocks in (("3 blocks", "3"), ("layers", "layers"))
    ),
    Row(
        "cifarnet whitened, backprop",
        "backprop",
        "cifarnet",
        _WHITENED,
        ("cifar10",),
        series="backprop",
    ),
    _spela(
        "cifarnet whitened, 3 blocks",
        "cifarnet",
        {**_WHITENED, "head_channels": 64},
        "3",
        data=("cifar10",),
        rival="cifarnet whitened, backprop",
    ),
)
_RESIDUAL = (
    Row("resnet, backprop", "backprop", "resnet", _RESNET, ("cifar10",), series="backprop, resnet"),
    _spela("resnet, 3 blocks", "resnet", _RESNET, "3", data=("cifar10",), rival="resnet, backprop"),
)
_TRANSFORMER = (
    Row("vit, backprop", "backprop", "vit", _VIT, ("fashion-mnist",), series="backprop, vit"),
    _spela("vit, 3 blocks", "vit", _VIT, "3", data=("fashion-mnist",), rival="vit, backprop"),
)

BLOCKS = Experiment(
    name="blocks",
    title="Whole networks in blocks: accuracy and memory against the number of blocks",
    data=_IMAGES,
    rows=(
        *in_panel("convolutions", *_CONVOLUTIONS),
        *in_panel("larger", *_LARGER),
        *in_panel("residual", *_RESIDUAL),
        *in_panel("transformer", *_TRANSFORMER),
    ),
    source=(
        "no published figure is of these networks: rivals are trained here, with the same network, epochs, "
        f"augmentation and order of samples; {CIFAR10_COPY}, and seconds are beside other work"
    ),
    panels={"convolutions": "", "larger": "", "residual": "", "transformer": ""},
    main=("*",),
    headline=(("3 blocks", "cifar10"), ("layers", "cifar10"), ("cifarnet, 3 blocks", "cifar10")),
    against_memory=("convolutions",),
    quick={
        "vgg": {"width": 4, "resize": 32},
        "cifarnet": {"width": 4, "resize": 16},
        "resnet": {"width": 4},
        "vit": {"width": 16},
    },
)
