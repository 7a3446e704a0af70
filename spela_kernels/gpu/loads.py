# mypy: ignore-errors
"""Loads that the kernels of every op share: a program's own tile, masked tiles, labels; and 1 / |row|."""

from __future__ import annotations

import triton
import triton.language as tl

from spela_kernels.cosines import NORM_EPS

__all__ = ["ROW_EPS", "inverse_norm", "load_labels", "load_tile", "narrowed", "own_tile"]

ROW_EPS: tl.constexpr = tl.constexpr(NORM_EPS)


@triton.jit
def own_tile(size, BLOCK: tl.constexpr):
    """This program's place (int64) on an outer axis, and its tile's offsets (BLOCK,) along one of `size`.

    Tiles run fastest: programs that share a place are neighbours in time and meet in L2.
    """
    tiles = tl.cdiv(size, BLOCK)
    place, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    return place, tile * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def load_tile(ptr, offs_m, stride_m, M, offs_n, stride_n, N):
    """Rows offs_m and columns offs_n of an (M, N) matrix; 0 beyond its edges."""
    offs = offs_m.to(tl.int64)[:, None] * stride_m + offs_n.to(tl.int64)[None, :] * stride_n
    return tl.load(ptr + offs, mask=(offs_m < M)[:, None] & (offs_n < N)[None, :], other=0.0)


@triton.jit
def load_labels(target_ptr, stride_t, offs_b, B, C):
    """Labels safe to form addresses with, and which of them are real."""
    label = tl.load(target_ptr + offs_b.to(tl.int64) * stride_t, mask=offs_b < B, other=-1)
    valid = (label >= 0) & (label < C)
    return tl.where(valid, label, 0), valid


@triton.jit
def inverse_norm(norm):
    """1 / |row|; 0 for rows without direction."""
    return tl.where(norm > ROW_EPS, 1 / tl.maximum(norm, ROW_EPS), 0.0)


@triton.jit
def narrowed(values, dtype: tl.constexpr):
    """Gradients in an operand's dtype: what float16 cannot hold becomes its largest number; NaN stays.

    A row's gradient is as large as the row is short, and infinity times 0 would spoil every weight.
    """
    if dtype == tl.float16:
        values = tl.where(values > 65504.0, 65504.0, values)
        values = tl.where(values < -65504.0, -65504.0, values)
    return values.to(dtype)
