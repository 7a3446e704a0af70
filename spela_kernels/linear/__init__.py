"""The SPELA linear layer: reference, back-ends and public functions."""

from spela_kernels.linear.functional import (
    linear_adam_,
    linear_forward,
    linear_gradient,
    linear_loss,
    linear_sgd_,
)
from spela_kernels.linear.types import Gradient, Parameters

__all__ = [
    "Gradient",
    "Parameters",
    "linear_adam_",
    "linear_forward",
    "linear_gradient",
    "linear_loss",
    "linear_sgd_",
]
