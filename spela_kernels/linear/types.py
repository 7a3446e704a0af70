"""The tuples that travel between the linear op and its back-ends.

Axes: B batch, I in, O out, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from spela_kernels.contracts import Settings
from spela_kernels.rules import Step

__all__ = ["NO_BUFFERS", "Buffers", "Call", "Forward", "Gradient", "Parameters", "step_of"]


class Parameters(NamedTuple):
    """A layer's parameters, or an optimizer buffer for each of them."""

    weight: Tensor  # (O, I)
    bias: Tensor | None  # (O,)
    slope: Tensor | None  # (1,), prelu only


class Call(NamedTuple):
    """A layer and the batch it is given: what a back-end's functions take."""

    x: Tensor  # (B, I), in the parameters' dtype or in 16 bits under float32 ones
    params: Parameters
    vectors: Tensor  # (C, O)
    target: Tensor | None  # (B,) int64 labels; None where scores alone are asked for
    settings: Settings


class Forward(NamedTuple):
    """What a forward leaves behind; `pre_activation` is empty unless phi' needs it."""

    loss: Tensor  # ()
    y: Tensor  # (B, O)
    pre_activation: Tensor  # (B, O) or (0,)
    norm: Tensor  # (B,)
    cosine: Tensor  # (B,) to the label's vector, or (B, C) for all-class objectives


class Gradient(NamedTuple):
    """Gradients, shaped like the parameters they belong to."""

    weight: Tensor
    bias: Tensor | None
    slope: Tensor | None


# One a parameter: weight, bias, slope; `Parameters` are such, where all have one.
Buffers = tuple[Tensor | None, Tensor | None, Tensor | None]
NO_BUFFERS: Buffers = (None, None, None)  # of a rule that keeps none


def step_of(step: Step[Buffers], index: int) -> Step[Tensor | None]:
    """A layer's step for one of its parameters: weight, bias or slope (0, 1, 2)."""
    return Step(step.rule, step.lr, step.first[index], step.second[index], step.number)
