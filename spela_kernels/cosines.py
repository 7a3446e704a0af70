"""Directions of rows and the gradient through a cosine, shared by the references.

Rows lie along the last axis. Statistics and scalars are kept in at least float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["NORM_EPS", "cosine_gradient", "narrowed", "scalar_like", "unit_rows", "widened"]

_NARROW = (torch.float16, torch.bfloat16)
# Rows no longer than this have no direction: their cosines are 0 and they contribute no gradient. Nor have
# rows whose squares overflow, from 1.8e19 on in float32: their norm is infinite.
NORM_EPS = 1e-12


def widened(tensor: Tensor) -> Tensor:
    """The tensor in at least float32."""
    return tensor.float() if tensor.dtype in _NARROW else tensor


def narrowed(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient in an operand's dtype: what float16 cannot hold becomes its largest number; NaN stays.

    A row's gradient is as large as the row is short, and infinity times 0 would spoil every weight.
    """
    if dtype == torch.float16:
        largest = torch.finfo(dtype).max
        gradient = gradient.clamp(-largest, largest)
    return gradient.to(dtype)


def scalar_like(value: float | Tensor, like: Tensor) -> Tensor:
    """A learning rate or count as a 0-d tensor on the device of `like`, in at least float32.

    Tensors pass through.

    Raises:
        ValueError: If it is not one number, or is negative, infinite or NaN; tensors are not looked into.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"`lr` and `step` must be one number, got shape {tuple(value.shape)}")
        return value
    if not 0 <= value < math.inf:
        raise ValueError(f"`lr` and `step` must be finite and >= 0, got {value}")
    dtype = torch.promote_types(like.dtype, torch.float32)
    # A fill: copying the number to a GPU would wait for it.
    return torch.full((), value, dtype=dtype, device=like.device)


def unit_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (..., d) scaled to norm 1 (zeros for rows without direction), and their norms (...)."""
    norm = torch.linalg.vector_norm(rows, dim=-1)
    return rows / norm.masked_fill(norm <= NORM_EPS, math.inf)[..., None], norm


def cosine_gradient(pull: Tensor, drift: Tensor, rows: Tensor, norm: Tensor) -> Tensor:
    """dL/drow = (sum_j q_j v_j - (sum_j q_j c_j) row/|row|) / |row| with q_j = dL/dc_j.

    Args:
        pull: (..., d) sum_j q_j v_j.
        drift: (...) sum_j q_j c_j.
        rows: (..., d).
        norm: (...) their norms.

    Returns:
        (..., d); zeros for rows that are no longer than `NORM_EPS` or whose norm is infinite.

    Example:
        >>> v, row = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
        >>> cosine_gradient(v, torch.tensor([0.6]), row, torch.tensor([5.0]))
        tensor([[ 0.1280, -0.0960]])
    """
    inverse = torch.where(norm > NORM_EPS, 1 / norm, torch.zeros_like(norm))[..., None]
    return (pull - drift[..., None] * rows * inverse) * inverse
