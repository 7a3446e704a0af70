# mypy: ignore-errors
# ruff: noqa: RET505, E741 - Triton drops a constexpr branch only where `else` is written; I and O are axes.
"""The linear layer's gradient kernel: dW = dz^T x with dz rebuilt in place, and the optimizer step.

`kernels.py` holds the two launches before it and explains ALIGN and the missing 1/B.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spela_kernels.gpu.formulas import activation_slope, label_derivative
from spela_kernels.gpu.loads import inverse_norm, load_labels, narrowed
from spela_kernels.gpu.updates import apply_step, ordered_sum

__all__ = ["update_kernel"]


@triton.jit
def _load_dz(
    y_ptr, z_ptr, vectors_ptr, target_ptr, norm_ptr, cosine_ptr, dz_ptr,
    offs_b, offs_o, B, O, C,
    stride_yb, stride_yo, stride_zb, stride_zo, stride_vc, stride_vo, stride_t,
    slope, ACTIVATION: tl.constexpr, OBJECTIVE: tl.constexpr,
):  # fmt: skip
    """A (rows, columns) tile of B dL/dz: rebuilt from y and the row scalars, or as `finalise` left it."""
    mask_b = offs_b < B
    mask = mask_b[:, None] & (offs_o < O)[None, :]
    if dz_ptr is not None:
        return tl.load(dz_ptr + offs_b.to(tl.int64)[:, None] * O + offs_o[None, :],
                       mask=mask, other=0.0)  # fmt: skip
    else:
        columns = offs_o.to(tl.int64)[None, :]
        label, valid = load_labels(target_ptr, stride_t, offs_b, B, C)
        inverse = inverse_norm(tl.load(norm_ptr + offs_b, mask=mask_b, other=0.0))
        cosine = tl.load(cosine_ptr + offs_b, mask=mask_b, other=0.0)
        # As in `finalise`, with its factors 1/|y| taken in: dy = pull v - drift y.
        pull = tl.where(valid, label_derivative(cosine, OBJECTIVE) * inverse, 0.0)
        drift = tl.where(valid, pull * cosine * inverse, 0.0)
        y = tl.load(y_ptr + offs_b.to(tl.int64)[:, None] * stride_yb + columns * stride_yo,
                    mask=mask, other=0.0).to(tl.float32)  # fmt: skip
        vectors = tl.load(vectors_ptr + label[:, None] * stride_vc + columns * stride_vo,
                          mask=mask, other=0.0).to(tl.float32)  # fmt: skip
        v = y
        if z_ptr is not None:
            v = tl.load(z_ptr + offs_b.to(tl.int64)[:, None] * stride_zb + columns * stride_zo,
                        mask=mask, other=0.0).to(tl.float32)  # fmt: skip
        dy = pull[:, None] * vectors - drift[:, None] * y
        return dy * activation_slope(v, slope, ACTIVATION)


@triton.jit
def update_kernel(
    x_ptr,  # (B, I)
    y_ptr, z_ptr,  # (B, O); z or None as in `forward`; unused with dz
    vectors_ptr,  # (C, O)
    target_ptr,  # (B,) int64
    norm_ptr, cosine_ptr,  # (B,) fp32; unused with dz
    dz_ptr,  # (B, O) contiguous or None: B dL/dz from `finalise`
    losses_ptr, loss_ptr,  # (B,) and () fp32, or None: mean of the row losses
    dslope_ptr,  # (dslope_count,) fp32 or None: partial sums from `finalise`
    grad_loss_ptr,  # () or None: factor of all gradients
    lr_ptr, step_ptr,  # () or None
    weight_ptr, weight_first_ptr, weight_second_ptr,  # (O, I); state or None
    bias_ptr, bias_first_ptr, bias_second_ptr,  # (O,) or None
    slope_ptr, slope_first_ptr, slope_second_ptr,  # (1,) or None
    B, I, O, C, dslope_count,
    stride_xb, stride_xi, stride_yb, stride_yo, stride_zb, stride_zo,
    stride_vc, stride_vo, stride_t,
    stride_wo, stride_wi, stride_so, stride_si,  # the weight, its optimizer state
    stride_b, stride_sb,  # the bias, its optimizer state
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, OBJECTIVE: tl.constexpr,
    RULE: tl.constexpr, NESTEROV: tl.constexpr, DECAYS: tl.constexpr,
    momentum, weight_decay, beta1, beta2, rest1, rest2, log_beta1, log_beta2, adam_eps,  # of the rule
    PRECISION: tl.constexpr, ALIGN_I: tl.constexpr, ALIGN_O: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """One (BLOCK_O, BLOCK_I) tile of dW = dz^T x, stored or applied to the weight tile in place.

    With RULE "gradient" the parameter pointers are where the gradients go.
    """
    I = I // ALIGN_I * ALIGN_I
    O = O // ALIGN_O * ALIGN_O
    stride_xb = stride_xb // ALIGN_I * ALIGN_I
    stride_wo = stride_wo // ALIGN_I * ALIGN_I
    stride_so = stride_so // ALIGN_I * ALIGN_I
    stride_yb = stride_yb // ALIGN_O * ALIGN_O
    stride_zb = stride_zb // ALIGN_O * ALIGN_O
    stride_vc = stride_vc // ALIGN_O * ALIGN_O
    tiles_i = tl.cdiv(I, BLOCK_I)
    tile_o, tile_i = tl.program_id(0) // tiles_i, tl.program_id(0) % tiles_i
    offs_o = tile_o * BLOCK_O + tl.arange(0, BLOCK_O)
    offs_i = tile_i * BLOCK_I + tl.arange(0, BLOCK_I)
    mask_o, mask_i = offs_o < O, offs_i < I
    # prelu's slope is stepped below by one program, so the others must not read it: they get dz.
    slope = NEGATIVE_SLOPE

    dweight = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    dbias = tl.zeros((BLOCK_O,), tl.float32)
    for start in range(0, B, BLOCK_B):
        offs_b = start + tl.arange(0, BLOCK_B)
        dz = _load_dz(
            y_ptr, z_ptr, vectors_ptr, target_ptr, norm_ptr, cosine_ptr, dz_ptr,
            offs_b, offs_o, B, O, C,
            stride_yb, stride_yo, stride_zb, stride_zo, stride_vc, stride_vo, stride_t,
            slope, ACTIVATION, OBJECTIVE,
        )  # fmt: skip
        x = tl.load(
            x_ptr + offs_b.to(tl.int64)[:, None] * stride_xb
            + offs_i.to(tl.int64)[None, :] * stride_xi,
            mask=(offs_b < B)[:, None] & mask_i[None, :], other=0.0,
        )  # fmt: skip
        dweight = tl.dot(tl.trans(narrowed(dz, x.dtype)), x, dweight, input_precision=PRECISION)
        if bias_ptr is not None:
            dbias += tl.sum(dz.to(tl.float32), axis=0)

    factor = 1.0 / B
    if grad_loss_ptr is not None:
        factor *= tl.load(grad_loss_ptr).to(tl.float32)
    lr, step = 0.0, 0.0
    if lr_ptr is not None:
        lr = tl.load(lr_ptr).to(tl.float32)
    if step_ptr is not None:
        step = tl.load(step_ptr).to(tl.float32)
    rows, columns = offs_o.to(tl.int64), offs_i.to(tl.int64)[None, :]
    apply_step(
        dweight * factor, weight_ptr, rows[:, None] * stride_wo + columns * stride_wi,
        weight_first_ptr, weight_second_ptr,
        rows[:, None] * stride_so + columns * stride_si,
        mask_o[:, None] & mask_i[None, :], lr, step,
        RULE, NESTEROV, DECAYS,
        momentum, weight_decay, beta1, beta2, rest1, rest2, log_beta1, log_beta2, adam_eps,
    )  # fmt: skip
    if bias_ptr is not None:
        apply_step(
            dbias * factor, bias_ptr, rows * stride_b,
            bias_first_ptr, bias_second_ptr, rows * stride_sb,
            offs_o < tl.where(tile_i == 0, O, 0), lr, step,
            RULE, NESTEROV, DECAYS,
            momentum, weight_decay, beta1, beta2, rest1, rest2, log_beta1, log_beta2, adam_eps,
        )  # fmt: skip
    if tl.program_id(0) == 0:
        if loss_ptr is not None:
            tl.store(loss_ptr, ordered_sum(losses_ptr, B, 256) / B)
        if slope_ptr is not None:
            apply_step(
                ordered_sum(dslope_ptr, dslope_count, 256) * factor, slope_ptr, 0,
                slope_first_ptr, slope_second_ptr, 0, True, lr, step,
                RULE, NESTEROV, DECAYS,
                momentum, weight_decay, beta1, beta2, rest1, rest2, log_beta1, log_beta2, adam_eps,
            )  # fmt: skip
