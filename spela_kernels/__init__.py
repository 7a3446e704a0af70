"""Kernels of the SPELA engine: tensors in, tensors out.

Every op exists as a plain reference and, where a back-end is at hand, as a faster implementation with the
same result. Works without Triton and without a GPU.
"""

from spela_kernels.activations import ACTIVATIONS
from spela_kernels.backend import available_backends, select_backend, use_backend
from spela_kernels.linear import (
    linear_adam_,
    linear_forward,
    linear_gradient,
    linear_loss,
    linear_sgd_,
)
from spela_kernels.objectives import OBJECTIVES
from spela_kernels.projection import (
    projection_adam_,
    projection_forward,
    projection_gradient,
    projection_loss,
    projection_sgd_,
)

__all__ = [
    "ACTIVATIONS",
    "OBJECTIVES",
    "available_backends",
    "linear_adam_",
    "linear_forward",
    "linear_gradient",
    "linear_loss",
    "linear_sgd_",
    "projection_adam_",
    "projection_forward",
    "projection_gradient",
    "projection_loss",
    "projection_sgd_",
    "select_backend",
    "use_backend",
]
