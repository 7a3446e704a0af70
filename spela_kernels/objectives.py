"""The local objectives: each is a scalar function of cosines, with its derivative.

An objective sees the cosines between a row of layer outputs and the class vectors, never the outputs
themselves, so the layer's gradient needs only `derivative`:

    dL/dy_i = ( q_i V - <q_i, s_i> y_i/|y_i| ) / |y_i|,   q = derivative / B

and 0 for a row that has no direction (`cosines.NORM_EPS`).

Adding an objective is one row of `OBJECTIVES`; `Objective.in_kernels` says who runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["COSINE_MARGIN", "OBJECTIVES", "Objective", "get_objective"]

# f' of `angular` and `euclidean` has a pole at c = 1 (and -1): there the derivative is taken this far
# inside. The pole cancels against |v - c y/|y||, so gradients stay bounded; 1e-6 is a few float32 ulps.
COSINE_MARGIN = 1e-6

RowFunction = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Objective:
    """A per-sample loss f of cosines and its derivative.

    Attributes:
        name: The name users pass.
        all_classes: False: `cosine` is (B,), the cosine to the label's vector. True: (B, C), to all.
        loss: (cosine, target (B,), scale) -> (B,) losses.
        derivative: (cosine, target (B,), scale) -> dloss/dcosine, shaped like `cosine`.
        source: Where it comes from.
        in_kernels: Whether the kernels hold these very functions under this name. A row without is run by
            its functions, on the CPU and by the reference; `auto` then passes over Triton.
    """

    name: str
    all_classes: bool
    loss: RowFunction
    derivative: RowFunction
    source: str
    in_kernels: bool = False


def _inside(c: Tensor) -> Tensor:
    return c.clamp(-1 + COSINE_MARGIN, 1 - COSINE_MARGIN)


def _angular_derivative(c: Tensor, target: Tensor, scale: float) -> Tensor:
    c = _inside(c)
    return -1 / ((1 + torch.acos(c) / math.pi) * math.pi * torch.sqrt(1 - c * c))


def _euclidean_derivative(c: Tensor, target: Tensor, scale: float) -> Tensor:
    distance = torch.sqrt(2 - 2 * _inside(c))
    return -1 / ((1 + distance) * distance)


def _softmax_loss(c: Tensor, target: Tensor, scale: float) -> Tensor:
    return torch.nn.functional.cross_entropy(scale * c, target, reduction="none")


def _softmax_derivative(c: Tensor, target: Tensor, scale: float) -> Tensor:
    probability = torch.softmax(scale * c, dim=1)  # (B, C)
    one_hot = torch.zeros_like(probability).scatter_(1, target[:, None], 1.0)
    return scale * (probability - one_hot)


OBJECTIVES: dict[str, Objective] = {
    row.name: row
    for row in (
        Objective(
            "log",
            False,
            lambda c, target, scale: torch.log(2 - c),
            lambda c, target, scale: (c - 2).reciprocal(),
            "the released MLP code: log(2 - c)",
            in_kernels=True,
        ),
        Objective(
            "cosine",
            False,
            lambda c, target, scale: -c,
            lambda c, target, scale: torch.full_like(c, -1.0),
            "arXiv v2, Algorithm 1: -c",
            in_kernels=True,
        ),
        Objective(
            "angular",
            False,
            lambda c, target, scale: torch.log(1 + torch.acos(c.clamp(-1, 1)) / math.pi),
            _angular_derivative,
            "the angular ablation: log(1 + acos(c)/pi)",
            in_kernels=True,
        ),
        Objective(
            "euclidean",
            False,
            lambda c, target, scale: torch.log(1 + torch.sqrt((2 - 2 * c).clamp_min(0))),
            _euclidean_derivative,
            "the euclidean ablation: log(1 + |y/|y| - v|)",
            in_kernels=True,
        ),
        Objective(
            "mse",
            False,
            lambda c, target, scale: (1 - c) ** 2,
            lambda c, target, scale: -2 * (1 - c),
            "the released CNN code: (1 - c)^2",
            in_kernels=True,
        ),
        Objective(
            "softmax",
            True,
            _softmax_loss,
            _softmax_derivative,
            "not in the paper: cross-entropy of scale * cosines over all classes",
            in_kernels=True,
        ),
    )
}
"""Every objective by name, each a scalar function of cosines with its derivative and source."""


def get_objective(name: str) -> Objective:
    """Look an objective up by name.

    Args:
        name: One of the keys of `OBJECTIVES`.

    Returns:
        The table's row.

    Raises:
        ValueError: If `name` is not in the table.

    Example:
        >>> get_objective("mse").loss(torch.tensor([0.5]), torch.tensor([0]), 1.0)
        tensor([0.2500])
    """
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}: use one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]
