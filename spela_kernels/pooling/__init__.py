"""Passes over a convolution's map: window maxima with moments, their gradient, and transposing copies."""

from spela_kernels.pooling.functional import (
    Maxima,
    channels_last,
    kernels_first,
    scatter_to_maxima_,
    window_maxima,
)

__all__ = ["Maxima", "channels_last", "kernels_first", "scatter_to_maxima_", "window_maxima"]
