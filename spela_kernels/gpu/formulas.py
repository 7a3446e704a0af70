# ruff: noqa: RET505 - Triton keeps one branch of a constexpr `if` only where `else` is written.
"""Activations and label objectives as @triton.jit functions: one constexpr row each, fp32 in, fp32 out.

The rows and names are those of `activations.py` and `objectives.py`; a constexpr name picks one, so the
others leave no instruction behind. Triton has no tanh, expm1 or acos that also runs on AMD and in the
interpreter, hence the three series.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spela_kernels.objectives import COSINE_MARGIN

__all__ = [
    "acos",
    "activate",
    "activation_slope",
    "expm1",
    "label_derivative",
    "label_loss",
    "tanh",
]

_PI: tl.constexpr = tl.constexpr(3.141592653589793)
_EDGE: tl.constexpr = tl.constexpr(1 - COSINE_MARGIN)


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0; the series keeps the digits that the subtraction loses near 0."""
    series = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6)))))
    return tl.where(x > -0.25, series, tl.exp(x) - 1)


@triton.jit
def tanh(x):
    """(1 - e) / (1 + e) with e = exp(-2 |x|): cannot overflow."""
    less = expm1(-2 * tl.abs(x))  # e - 1
    size = -less / (2 + less)
    return tl.where(x < 0, -size, size)


@triton.jit
def acos(c):
    """acos on [-1, 1] to 3.4e-7, from asin(r) = r g(r^2) on r <= 1/2 and asin's half-angle rule beyond.

    The six coefficients are a Chebyshev fit of g on [0, 1/4] (error 5e-9).
    """
    size = tl.abs(c)
    outer = size > 0.5
    square = tl.where(outer, 0.5 - 0.5 * size, c * c)
    root = tl.where(outer, tl.sqrt(square), size)
    g = 0.02390936357828398 + square * 0.04255359912775499
    g = 0.07494534269339696 + square * (0.04553900971538737 + square * g)
    asin = root * (0.9999999957384346 + square * (0.16666787011719836 + square * g))
    positive = tl.where(outer, 2 * asin, _PI / 2 - asin)  # acos(|c|)
    return tl.where(c < 0, _PI - positive, positive)


@triton.jit
def _clamped(c, low, high):
    """c between two bounds; tl.clamp and tl.maximum would make a NaN one of them."""
    return tl.where(c < low, low, tl.where(c > high, high, c))


@triton.jit
def activate(z, slope, ACTIVATION: tl.constexpr):
    """phi(z)."""
    if ACTIVATION == "leaky_relu" or ACTIVATION == "prelu":
        return tl.where(z > 0, z, slope * z)
    elif ACTIVATION == "relu":
        return tl.where(z <= 0, 0.0, z)  # keeps a NaN
    elif ACTIVATION == "tanh":
        return tanh(z)
    elif ACTIVATION == "elu":
        return tl.where(z > 0, z, expm1(z))
    elif ACTIVATION == "gelu":
        return 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))
    else:
        tl.static_assert(ACTIVATION == "identity", "unknown activation")
        return z


@triton.jit
def activation_slope(v, slope, ACTIVATION: tl.constexpr):
    """phi'; v is z for gelu and prelu and y for the others."""
    if ACTIVATION == "leaky_relu" or ACTIVATION == "prelu":
        return tl.where(v > 0, 1.0, slope)
    elif ACTIVATION == "relu":
        return tl.where(v > 0, 1.0, 0.0)
    elif ACTIVATION == "tanh":
        return 1 - v * v
    elif ACTIVATION == "elu":
        return tl.where(v > 0, 1.0, v + 1)
    elif ACTIVATION == "gelu":
        density = tl.exp(-0.5 * v * v) * 0.3989422804014327
        return 0.5 * (1 + tl.erf(v * 0.7071067811865476)) + v * density
    else:
        tl.static_assert(ACTIVATION == "identity", "unknown activation")
        return v * 0 + 1


@triton.jit
def label_loss(c, OBJECTIVE: tl.constexpr):
    """f(c) of the cosine to the label's vector."""
    if OBJECTIVE == "log":
        return tl.log(2 - c)
    elif OBJECTIVE == "cosine":
        return -c
    elif OBJECTIVE == "angular":
        return tl.log(1 + acos(_clamped(c, -1.0, 1.0)) / _PI)
    elif OBJECTIVE == "euclidean":
        return tl.log(1 + tl.sqrt(2 - 2 * tl.where(c > 1, 1.0, c)))
    else:
        tl.static_assert(OBJECTIVE == "mse", "unknown objective")
        return (1 - c) * (1 - c)


@triton.jit
def label_derivative(c, OBJECTIVE: tl.constexpr):
    """f'(c)."""
    inside = _clamped(c, -_EDGE, _EDGE)
    if OBJECTIVE == "log":
        return -1 / (2 - c)
    elif OBJECTIVE == "cosine":
        return c * 0 - 1
    elif OBJECTIVE == "angular":
        return -1 / ((acos(inside) + _PI) * tl.sqrt(1 - inside * inside))
    elif OBJECTIVE == "euclidean":
        distance = tl.sqrt(2 - 2 * inside)
        return -1 / ((1 + distance) * distance)
    else:
        tl.static_assert(OBJECTIVE == "mse", "unknown objective")
        return 2 * c - 2
