"""A convolution layer's pooling, batch norm and LeakyReLU, forward and back."""

from spela_kernels.pooling.functional import (
    activate,
    descend,
    per_kernel,
    scatter_to_maxima_,
    window_maxima,
)
from spela_kernels.pooling.types import Active, Descent, Maxima, Normal

__all__ = [
    "Active",
    "Descent",
    "Maxima",
    "Normal",
    "activate",
    "descend",
    "per_kernel",
    "scatter_to_maxima_",
    "window_maxima",
]
