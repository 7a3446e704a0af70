"""The compiled passes over rows (`rows.c`) between a linear layer's two products, where built and fitting.

Axes: B batch, O out, C classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spela_kernels.activations import get_activation
from spela_kernels.contracts import Settings
from spela_kernels.cosines import NORM_EPS
from spela_kernels.cpu.gemm import linear, product
from spela_kernels.cpu.sources import built_module
from spela_kernels.objectives import COSINE_MARGIN, get_objective

__all__ = ["OBJECTIVES", "RowStep", "is_built", "step_rows"]

_rows: Any = built_module("spela_kernels.linear._rows")

# The codes of rows.c for objectives of the label's cosine; `softmax` has passes of its own. What is in
# neither runs in torch.
OBJECTIVES = {"log": 0, "cosine": 1, "angular": 2, "euclidean": 3, "mse": 4}
_SLOPES = {"relu": 0.0, "identity": 1.0}


class RowStep(NamedTuple):
    """What lies between the two products of a step."""

    loss: Tensor  # ()
    gradient: Tensor  # (B, O): dL/dz where `activated`, else dL/dy
    total: Tensor  # (O,): its sum over the batch
    activated: bool


def is_built() -> bool:
    """Whether the compiled passes were built at installation.

    Example:
        >>> is_built() in (True, False)
        True
    """
    return _rows is not None


def step_rows(y: Tensor, vectors: Tensor, target: Tensor, settings: Settings) -> RowStep | None:
    """Mean loss and gradient rows of a layer's output.

    Args:
        y: (B, O) float32 output.
        vectors: (C, O) float32 unit rows.
        target: (B,) int64 labels, checked.
        settings: The layer's activation and objective.

    Returns:
        A `RowStep`, or None where the passes were not built or do not fit.

    Source: `reference.py`, whose mathematics this is.

    Example:
        >>> y, settings = torch.tensor([[3.0, 4.0]]), Settings(objective="cosine")
        >>> step = step_rows(y, torch.eye(2), torch.tensor([1]), settings)
        >>> step is None or step.gradient.allclose(torch.tensor([[0.096, -0.072]]))
        True
    """
    if (
        _rows is None
        or not get_objective(settings.objective).in_kernels
        or not (settings.objective == "softmax" or settings.objective in OBJECTIVES)
        or y.dtype != torch.float32
        or vectors.dtype != torch.float32
        or not y.is_contiguous()
        or not vectors.is_contiguous()
    ):
        return None
    target, slope, activated = target.contiguous(), 1.0, False
    if get_activation(settings.activation).in_kernels:
        slopes = _SLOPES | {"leaky_relu": settings.negative_slope}
        slope = slopes.get(settings.activation, 1.0)
        activated = settings.activation in slopes
    run = _class_rows if settings.objective == "softmax" else _label_rows
    return RowStep(*run(y, vectors, target, settings, slope), activated)


def _label_rows(
    y: Tensor, vectors: Tensor, target: Tensor, settings: Settings, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, outputs = y.shape
    loss, gradient, total = y.new_empty(()), torch.empty_like(y), y.new_empty(outputs)
    _rows.label_rows(
        y.data_ptr(), vectors.data_ptr(), target.data_ptr(), batch, outputs,
        OBJECTIVES[settings.objective], slope, NORM_EPS, COSINE_MARGIN,
        torch.get_num_threads(), loss.data_ptr(), gradient.data_ptr(), total.data_ptr(),
    )  # fmt: skip
    return loss, gradient, total


def _class_rows(
    y: Tensor, vectors: Tensor, target: Tensor, settings: Settings, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, outputs), classes = y.shape, vectors.shape[0]
    dots, _ = linear(y, vectors, None, None, 0.0)  # (B, C)
    loss, factors, along = y.new_empty(()), y.new_empty(classes, batch), y.new_empty(batch)
    _rows.class_factors(
        y.data_ptr(), dots.data_ptr(), target.data_ptr(), batch, outputs, classes,
        settings.scale, NORM_EPS, loss.data_ptr(), factors.data_ptr(), along.data_ptr(),
    )  # fmt: skip
    gradient, total = product(factors, vectors), y.new_empty(outputs)  # (B, O)
    _rows.class_rows(
        y.data_ptr(), along.data_ptr(), batch, outputs, slope, torch.get_num_threads(),
        gradient.data_ptr(), total.data_ptr(),
    )  # fmt: skip
    return loss, gradient, total
