"""The grouped projection of a convolution layer: reference, back-ends and public functions."""

from spela_kernels.projection.functional import (
    projection_adam_,
    projection_forward,
    projection_gradient,
    projection_loss,
    projection_sgd_,
)
from spela_kernels.projection.types import Gradient

__all__ = [
    "Gradient",
    "projection_adam_",
    "projection_forward",
    "projection_gradient",
    "projection_loss",
    "projection_sgd_",
]
