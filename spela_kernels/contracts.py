"""Argument checks shared by every back-end: shapes, dtypes, devices, labels.

Metadata checks run on real and fake tensors alike; label values are read on the CPU only, since a GPU
would have to wait for them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from spela_kernels.activations import get_activation
from spela_kernels.objectives import get_objective

__all__ = [
    "Settings",
    "check_dense",
    "check_features",
    "check_labels",
    "check_linear",
    "check_negative_slope",
    "check_projection",
    "check_scale",
    "check_target",
    "check_tensors",
    "without_kernels",
]


class Settings(NamedTuple):
    """What a layer computes, apart from its tensors.

    Attributes:
        activation: A name from `ACTIVATIONS`.
        negative_slope: Slope of leaky_relu below zero, >= 0.
        objective: A name from `OBJECTIVES`.
        scale: Factor of the cosines in `softmax` (its inverse temperature), > 0; others ignore it.
    """

    activation: str = "leaky_relu"
    negative_slope: float = 1e-3
    objective: str = "log"
    scale: float = 20.0


def without_kernels(settings: Settings) -> str | None:
    """What of a layer's settings the kernels do not hold, in words; None where they hold all.

    Example:
        >>> without_kernels(Settings()) is None
        True
    """
    if not get_objective(settings.objective).in_kernels:
        return f"objective {settings.objective!r}"
    if not get_activation(settings.activation).in_kernels:
        return f"activation {settings.activation!r}"
    return None


def check_scale(scale: float) -> None:
    """Refuse factors of the cosines with which an objective is none. ValueError."""
    if not 0 < scale < math.inf:
        raise ValueError(f"`scale` must be > 0 and finite, got {scale}")


def check_negative_slope(negative_slope: float) -> None:
    """Refuse leaky_relu's slopes below zero with which the sign of y would not tell that of z. ValueError."""
    if not 0 <= negative_slope < math.inf:
        raise ValueError(f"`negative_slope` must be >= 0 and finite, got {negative_slope}")


def _check_matrix(name: str, tensor: Tensor, axes: str) -> None:
    if tensor.dim() != 2:
        raise ValueError(
            f"`{name}` must be {axes}, got shape {tuple(tensor.shape)}: flatten each sample to a row"
        )


def _check_device(name: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    if tensor.device != reference.device:
        raise ValueError(
            f"`{name}` is on {tensor.device} but `{reference_name}` on {reference.device}: "
            "move both to one device"
        )


def _check_like(name: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    _check_device(name, tensor, reference_name, reference)
    if tensor.dtype != reference.dtype:
        pixels = ", pixels by x.float() / 255" if tensor.dtype == torch.uint8 else ""
        raise TypeError(
            f"`{name}` is {tensor.dtype} but `{reference_name}` is {reference.dtype}: convert one{pixels}"
        )


def _check_input(name: str, tensor: Tensor, weight_name: str, weight: Tensor) -> None:
    if weight.dtype == torch.float32 and tensor.dtype in (torch.float16, torch.bfloat16):
        _check_device(name, tensor, weight_name, weight)  # mixed precision: products in 16 bits
    else:
        _check_like(name, tensor, weight_name, weight)


def _check_filled(name: str, weight: Tensor, vectors: Tensor, needs: str) -> None:
    if not weight.is_floating_point():
        raise TypeError(f"`{name}` must be floating point, got {weight.dtype}")
    if weight.numel() == 0 or vectors.numel() == 0:
        raise ValueError(f"{needs}: {name} {tuple(weight.shape)}, vectors {tuple(vectors.shape)}")


def _check_range(name: str, tensor: Tensor, size: int, what: str) -> None:
    traced = isinstance(tensor, FakeTensor) or torch.compiler.is_compiling()
    if traced or tensor.device.type != "cpu":
        return
    low, high = [bound.item() for bound in tensor.aminmax()]
    if low < 0 or high >= size:
        raise ValueError(f"`{name}` must hold {what} 0..{size - 1}, got {low if low < 0 else high}")


def check_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slope: Tensor | None,
    vectors: Tensor,
    settings: Settings,
) -> None:
    """Check the tensors of a linear layer against each other.

    Args:
        x: (B, I) float layer input, in the parameters' dtype or in 16 bits under float32 ones.
        weight: (O, I) float.
        bias: (O,) or None.
        slope: (1,) learnable slope, for `prelu` only.
        vectors: (C, O) class vectors.
        settings: The layer's activation and objective.

    Raises:
        ValueError: On a shape, device, or name that does not fit.
        TypeError: On dtypes that differ or are not floating point.
    """
    activation, negative_slope = settings.activation, settings.negative_slope
    get_activation(activation)
    get_objective(settings.objective)
    check_scale(settings.scale)
    _check_matrix("x", x, "(B, I)")
    _check_matrix("weight", weight, "(O, I)")
    _check_matrix("vectors", vectors, "(C, O)")
    _check_filled("weight", weight, vectors, "a layer needs inputs, outputs and classes")
    check_features(x, weight)
    if vectors.shape[1] != weight.shape[0]:
        raise ValueError(
            f"`vectors` have dimension {vectors.shape[1]} but the layer has {weight.shape[0]} "
            f"outputs: vectors must be (C, {weight.shape[0]})"
        )
    _check_like("vectors", vectors, "weight", weight)
    if bias is not None:
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"`bias` must be ({weight.shape[0]},), got {tuple(bias.shape)}")
        _check_like("bias", bias, "weight", weight)
    if (slope is not None) != (activation == "prelu"):
        raise ValueError(
            f"`slope` is the tensor of `prelu` and of no other activation ({activation})"
        )
    if slope is not None:
        if slope.shape != (1,):
            raise ValueError(f"`slope` must have shape (1,), got {tuple(slope.shape)}")
        _check_like("slope", slope, "weight", weight)
    if activation == "leaky_relu":
        check_negative_slope(negative_slope)


def check_features(x: Tensor, weight: Tensor) -> None:
    """Check the input of a linear layer against its weight.

    Args:
        x: (*, I) float, in the weight's dtype or in 16 bits under a float32 one.
        weight: (O, I).

    Raises:
        ValueError: On another number of features, or another device.
        TypeError: On another dtype.
    """
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"`x` has {x.shape[-1] if x.dim() else 'no'} features but `weight` takes {weight.shape[1]}: "
            f"x {tuple(x.shape)}, weight {tuple(weight.shape)}"
        )
    _check_input("x", x, "weight", weight)


def check_projection(
    z: Tensor, projection: Tensor, vectors: Tensor, groups: Tensor, settings: Settings
) -> None:
    """Check the tensors of a grouped projection against each other.

    Args:
        z: (B, K, D) float pooled activations, in the dtype of `projection` or in 16 bits under
            float32.
        projection: (K, D, d) float.
        vectors: (K, G, d) class vectors of each kernel's groups.
        groups: (K, C) int64 group of each class; its values are read on the CPU only.
        settings: The objective and its scale.

    Raises:
        ValueError: On a shape, device, group or name that does not fit.
        TypeError: On dtypes that differ or are not what is said above.
    """
    get_objective(settings.objective)
    check_scale(settings.scale)
    for name, tensor, axes in (
        ("z", z, "(B, K, D): flatten each kernel's map to a row"),
        ("projection", projection, "(K, D, d)"),
        ("vectors", vectors, "(K, G, d)"),
    ):
        if tensor.dim() != 3:
            raise ValueError(f"`{name}` must be {axes}, got shape {tuple(tensor.shape)}")
    kernels, size, dim = projection.shape
    _check_filled("projection", projection, vectors, "a projection needs kernels, sizes and groups")
    if z.shape[1:] != (kernels, size):
        raise ValueError(
            f"`z` is {tuple(z.shape)} but `projection` {tuple(projection.shape)} takes "
            f"(B, {kernels}, {size})"
        )
    if vectors.shape[0] != kernels or vectors.shape[2] != dim:
        raise ValueError(
            f"`vectors` must be ({kernels}, G, {dim}) for this projection, got "
            f"{tuple(vectors.shape)}"
        )
    if groups.dim() != 2 or groups.shape[0] != kernels or groups.shape[1] == 0:
        raise ValueError(
            f"`groups` must be ({kernels}, C), a group for each class, got {tuple(groups.shape)}"
        )
    if groups.dtype != torch.int64:
        raise TypeError(f"`groups` must be int64, got {groups.dtype}: use .long()")
    _check_device("groups", groups, "projection", projection)
    _check_input("z", z, "projection", projection)
    _check_like("vectors", vectors, "projection", projection)
    _check_range("groups", groups, vectors.shape[1], "groups")


def check_dense(x: Tensor) -> None:
    """Refuse an array or a list in place of a batch.

    Args:
        x: The batch.

    Raises:
        TypeError: If it is no tensor, or a sparse one.
    """
    if not isinstance(x, Tensor):
        raise TypeError(
            f"`x` must be a tensor, got {type(x).__name__}: use torch.as_tensor(x) with the layer's dtype"
        )
    if x.layout != torch.strided:
        raise TypeError(f"`x` must be dense, got {x.layout}: use x.to_dense()")


def check_tensors(x: Tensor, target: Tensor) -> None:
    """Refuse arrays and lists in place of a batch or its labels.

    Args:
        x: The batch.
        target: Its labels.

    Raises:
        TypeError: If one is no tensor, or the batch is a sparse one.
    """
    check_dense(x)
    if not isinstance(target, Tensor):
        raise TypeError(
            f"`target` must be a tensor of int64 class indices, got {type(target).__name__}: use "
            "torch.as_tensor(target)"
        )


def check_target(x: Tensor, target: Tensor) -> None:
    """Check the metadata of labels.

    Args:
        x: (B, ...) the batch the labels belong to.
        target: (B,) int64 labels.

    Raises:
        ValueError: On a shape or device that does not fit, or if there is no sample: a mean needs one.
        TypeError: If labels are not int64.
    """
    if x.shape[0] == 0:
        raise ValueError("there are no rows: a batch needs at least one sample")
    if target.dim() != 1 or target.shape[0] != x.shape[0]:
        raise ValueError(
            f"`target` must be one label per sample, ({x.shape[0]},), got {tuple(target.shape)}"
            f"{_way_out(target)}"
        )
    if target.dtype != torch.int64:
        raise TypeError(f"`target` must be int64 class indices, got {target.dtype}: use .long()")
    if target.device != x.device:
        raise ValueError(f"`target` is on {target.device} but `x` on {x.device}: move one")


def _way_out(target: Tensor) -> str:
    if target.dim() != 2:
        return ""
    if target.shape[1] == 1:  # whose argmax is 0 everywhere
        return ": use target.squeeze(1)"
    return ": of one-hot rows use target.argmax(dim=1); soft labels, and several a sample, are not learnt"


def check_labels(target: Tensor, num_classes: int) -> None:
    """Check label values, on the CPU only (elsewhere the back-end guards the addresses it forms).

    Args:
        target: (B,) int64 labels.
        num_classes: C.

    Raises:
        ValueError: If a label is not in 0..C-1.
    """
    _check_range("target", target, num_classes, "labels")
