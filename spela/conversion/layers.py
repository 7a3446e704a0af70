"""An nn.Sequential's Linear and Conv2d modules, with what follows them, as SpelaLinear and SpelaConv2d."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spela.conversion.steps import Step, trace_steps
from spela.conversion.weights import draw_if_zero, simplex
from spela.layers import LocalLayer, SpelaConv2d, SpelaLinear

__all__ = ["LayerSettings", "by_layers"]


class LayerSettings(NamedTuple):
    """What the converted layers learn by."""

    num_classes: int
    objective: str
    scale: float
    conv_scale: float
    symmetric_dim: int
    generator: torch.Generator | None


def by_layers(model: nn.Module, x: Tensor, settings: LayerSettings) -> list[nn.Module]:
    """The modules of a network of layers.

    Args:
        model: An nn.Sequential.
        x: A batch of its input.
        settings: What its layers learn by.

    Raises:
        ValueError: Naming the first module that has no counterpart or does not fit.
    """
    steps = trace_steps(model, x)
    learning = [i for i, step in enumerate(steps) if type(step.module) in (nn.Linear, nn.Conv2d)]
    if not learning:
        raise ValueError("`model` has no Linear or Conv2d: nothing in it could learn")
    modules: list[nn.Module] = []
    while steps:
        if type(steps[0].module) is nn.Linear:
            layer, used = _linear(steps, settings)
        elif type(steps[0].module) is nn.Conv2d:
            layer, used = _convolution(steps, settings)
        else:
            layer, used = steps[0].module.requires_grad_(False), 1
        layer.training = steps[0].module.training
        modules.append(layer)
        left, steps = steps, steps[used:]
    if not isinstance(modules[-1], LocalLayer):
        raise ValueError(
            f"{left[0]} comes after the last Linear or Conv2d, whose scores are the answer: nothing "
            "would use it, remove it"
        )
    return modules


def _linear(steps: list[Step], settings: LayerSettings) -> tuple[nn.Module, int]:
    """The SpelaLinear of the first module, with the next one's activation where it has that one."""
    source: Any = steps[0].module
    activation, slope, used = None, 0.0, 1
    if len(steps) > 1:
        activation, slope = _activation(steps[1].module)
        used = 1 if activation is None else 2
    activation = activation or "identity"
    vectors: str | Tensor = "symmetric"
    answers = used == len(steps) and activation == "identity"
    if answers and source.out_features == settings.num_classes:
        vectors = simplex(settings.num_classes)
    layer = SpelaLinear(
        source.in_features,
        source.out_features,
        settings.num_classes,
        bias=source.bias is not None,
        activation=activation,
        negative_slope=slope,
        objective=settings.objective,
        scale=settings.scale,
        vectors=vectors,
        generator=settings.generator,
        device=source.weight.device,
        dtype=source.weight.dtype,
    )
    draw_if_zero(source, settings.generator)
    _copy_parameters(source, layer)
    if layer.slope is not None:
        layer.slope.requires_grad_(steps[1].module.get_parameter("weight").requires_grad)
    return layer, used


def _activation(module: nn.Module) -> tuple[str | None, float]:
    """Its name among SPELA's activations, None if it is not one of them, and its slope."""
    slope, kind = 0.0, type(module)
    found: Any = module
    # A falling piece has no inverse: phi' could not be told from the sign of y.
    if kind is nn.LeakyReLU and found.negative_slope >= 0:
        return "leaky_relu", float(found.negative_slope)
    if kind is nn.PReLU and found.num_parameters == 1:
        return "prelu", 0.25 if found.weight.is_meta else float(found.weight)
    simple = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Identity: "identity"}
    if kind is nn.ELU and found.alpha == 1:
        return "elu", slope
    if kind is nn.GELU and found.approximate == "none":
        return "gelu", slope
    return simple.get(kind), slope


def _convolution(steps: list[Step], settings: LayerSettings) -> tuple[nn.Module, int]:
    """The SpelaConv2d of the first module and of the batch norm, LeakyReLU and pool right after it."""
    source: Any = steps[0].module
    following = [step.module for step in steps[1:]]
    norm: Any = None
    if following and type(following[0]) is nn.BatchNorm2d and following[0].affine:
        norm = following.pop(0)
    negative_slope = 1.0  # LeakyReLU with this slope changes nothing
    if following:
        name, slope = _activation(following[0])
        if name in ("relu", "leaky_relu", "identity"):
            negative_slope = 1.0 if name == "identity" else slope
            following.pop(0)
    pool, size = _square_pool(following[0]) if following else (None, 1)
    if pool is not None:
        following.pop(0)
    used = len(steps) - len(following)
    height, width = steps[used - 1].shape[2:]
    if height * width < 2:
        raise ValueError(
            f"{steps[0]} ends in one pixel a kernel, which has no direction that could turn: pool less, or "
            "cut the network into `blocks`"
        )
    layer = SpelaConv2d(
        source.in_channels,
        source.out_channels,
        source.kernel_size,
        settings.num_classes,
        output_size=(height, width),
        stride=source.stride,
        padding=source.padding,
        dilation=source.dilation,
        groups=source.groups,
        bias=source.bias is not None,
        symmetric_dim=settings.symmetric_dim,
        projection_std=0.1,
        grouping=settings.num_classes,
        batch_norm=norm is not None,
        pool=pool,
        pool_size=size,
        negative_slope=negative_slope,
        objective=settings.objective,
        scale=settings.conv_scale,
        generator=settings.generator,
        device=source.weight.device,
        dtype=source.weight.dtype,
    )
    _copy_parameters(source, layer)
    layer.norm = norm
    return layer, used


def _square_pool(module: nn.Module) -> tuple[str | None, int]:
    """max or avg and the window, or None where SpelaConv2d has no such pool."""
    if type(module) not in (nn.MaxPool2d, nn.AvgPool2d):
        return None, 1
    found: Any = module

    def same(value: int | tuple[int, ...]) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else (value, value)

    window = same(found.kernel_size)
    plain = same(found.stride) == window and same(found.padding) == (0, 0) and not found.ceil_mode
    plain = plain and window[0] == window[1] and same(getattr(found, "dilation", 1)) == (1, 1)
    if not plain or getattr(found, "divisor_override", None) is not None:
        return None, 1
    return ("max" if type(module) is nn.MaxPool2d else "avg"), window[0]


def _copy_parameters(source: Any, layer: Any) -> None:
    for name in ("weight", "bias"):
        parameter = getattr(source, name)
        if parameter is not None:
            getattr(layer, name).copy_(parameter)
            getattr(layer, name).requires_grad_(parameter.requires_grad)
