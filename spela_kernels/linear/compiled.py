"""The compiled row pass (`rows.c`) between a linear layer's two products, where it was built and fits.

Axes: B batch, O out, C classes.
"""

from __future__ import annotations

import contextlib
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spela_kernels.contracts import Settings
from spela_kernels.objectives import COSINE_MARGIN
from spela_kernels.rows import NORM_EPS

__all__ = ["RowStep", "is_built", "step_rows"]

_rows: Any = None
with contextlib.suppress(ImportError):  # no compiler was there at installation
    _rows = import_module("spela_kernels.linear._rows")

# The codes of rows.c; an objective or activation that is missing here runs in torch.
_OBJECTIVES = {"log": 0, "cosine": 1, "angular": 2, "euclidean": 3, "mse": 4, "softmax": 5}
_SLOPES = {"relu": 0.0, "identity": 1.0}
# From here on, products with all class vectors by a GEMM library are faster.
_MOST_CLASSES = 32


class RowStep(NamedTuple):
    """What lies between the two products of a step."""

    loss: Tensor  # ()
    gradient: Tensor  # (B, O): dL/dz where `activated`, else dL/dy
    total: Tensor  # (O,): its sum over the batch
    activated: bool


def is_built() -> bool:
    """Whether the compiled pass was built at installation.

    Example:
        >>> is_built() in (True, False)
        True
    """
    return _rows is not None


def step_rows(y: Tensor, vectors: Tensor, target: Tensor, settings: Settings) -> RowStep | None:
    """Mean loss and gradient rows of a layer's output, in one pass.

    Args:
        y: (B, O) float32 output.
        vectors: (C, O) float32 unit rows.
        target: (B,) int64 labels, checked.
        settings: The layer's activation and objective.

    Returns:
        A `RowStep`, or None where the pass was not built or does not fit.

    Source: spec section 3.

    Example:
        >>> y, settings = torch.tensor([[3.0, 4.0]]), Settings(objective="cosine")
        >>> step = step_rows(y, torch.eye(2), torch.tensor([1]), settings)
        >>> step is None or step.gradient.allclose(torch.tensor([[0.096, -0.072]]))
        True
    """
    objective = _OBJECTIVES.get(settings.objective)
    batch, outputs = y.shape
    classes = vectors.shape[0]
    if (
        _rows is None
        or objective is None
        or (settings.objective == "softmax" and classes > _MOST_CLASSES)
        or y.dtype != torch.float32
        or vectors.dtype != torch.float32
        or not y.is_contiguous()
        or not vectors.is_contiguous()
    ):
        return None
    slope = settings.negative_slope
    if settings.activation != "leaky_relu":
        slope = _SLOPES.get(settings.activation, 1.0)
    loss, gradient, total = y.new_empty(()), torch.empty_like(y), y.new_empty(outputs)
    labels = target.contiguous()
    _rows.step_rows(
        y.data_ptr(), vectors.data_ptr(), labels.data_ptr(), batch, outputs, classes,
        objective, settings.scale, slope, NORM_EPS, COSINE_MARGIN,
        loss.data_ptr(), gradient.data_ptr(), total.data_ptr(),
    )  # fmt: skip
    activated = settings.activation == "leaky_relu" or settings.activation in _SLOPES
    return RowStep(loss, gradient, total, activated)
