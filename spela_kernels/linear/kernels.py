# ruff: noqa: RET505, E741 - Triton drops a constexpr branch only where `else` is written; I and O are axes.
"""The linear layer's Triton kernels, with `update_kernel.py`; `launch.py` runs them. No torch here.

A layer step is three launches:
    forward   y = phi(x W^T + b); per column tile and row: sum y^2 and y.v, written to partial buffers
    finalise  partials -> |y|, cosines, loss per row (and, where noted there, dL/dz; in a second launch of it,
              from the cosines, where every tile of dL/dz would add too many partials up again)
    update    dW = dz^T x with dz rebuilt from y tile by tile; its epilogue stores or applies the gradient

Nothing is accumulated across programs, so every run gives the same bits. The mean's 1/B is applied to
dW and not to dz: dz / B would underflow in fp16. Addresses of matrices are formed in int64.

ALIGN_I and ALIGN_O promise that rows along I (of x, W and its state) and along O (of y, z, V) start and
end on multiples of that many elements; the `// ALIGN * ALIGN` below hands the promise to the compiler,
which then loads 16 bytes at once. Axes: B batch, I in, O out, C classes, T column tiles of `forward`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spela_kernels.gpu.formulas import activate, activation_slope, label_derivative, label_loss
from spela_kernels.gpu.loads import inverse_norm, load_labels, narrowed

__all__ = ["finalise_kernel", "forward_kernel"]


@triton.jit
def _layer_slope(slope_ptr, NEGATIVE_SLOPE: tl.constexpr):
    if slope_ptr is None:
        return NEGATIVE_SLOPE
    else:
        return tl.load(slope_ptr).to(tl.float32)


@triton.jit
def _load_columns(rows, stride, mask_rows, start, size, BLOCK: tl.constexpr):
    """Columns [start, start + BLOCK) of a tile of rows; 0 beyond `size`."""
    offs = (start + tl.arange(0, BLOCK))[None, :]
    return tl.load(rows + offs.to(tl.int64) * stride,
                   mask=mask_rows[:, None] & (offs < size), other=0.0)  # fmt: skip


@triton.jit
def _add_product(z, x, weight, PARTS: tl.constexpr, PRECISION: tl.constexpr):
    """z + x W^T. With parts each warp has a share of the columns, and z a matrix for each part."""
    weight = weight.to(x.dtype)
    if PARTS == 1:
        return tl.dot(x, tl.trans(weight), z, input_precision=PRECISION)
    else:
        x = tl.reshape(x, (x.shape[0], PARTS, x.shape[1] // PARTS))
        weight = tl.reshape(weight, (weight.shape[0], PARTS, weight.shape[1] // PARTS))
        x, weight = tl.permute(x, (1, 0, 2)), tl.permute(weight, (1, 2, 0))
        return tl.dot(x, weight, z, input_precision=PRECISION)


@triton.jit
def forward_kernel(
    x_ptr,  # (B, I)
    weight_ptr,  # (O, I)
    bias_ptr,  # (O,) or None
    slope_ptr,  # (1,) or None
    vectors_ptr,  # (C, O)
    target_ptr,  # (B,) int64 or None
    y_ptr,  # (B, O) contiguous
    z_ptr,  # (B, O) contiguous, or None where phi' follows from y
    squares_ptr,  # (T, B) fp32
    dots_ptr,  # (T, B) fp32: y.v_label; (T, B, C) with ALL_CLASSES
    B, I, O, C,
    stride_xb, stride_xi, stride_wo, stride_wi, stride_b, stride_vc, stride_vo, stride_t,
    stride_squares, stride_dots, stride_dotb,  # T and T, B axes; rows of dots hold >= C columns
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, ALL_CLASSES: tl.constexpr,
    PRECISION: tl.constexpr, PREFETCH: tl.constexpr, PARTS: tl.constexpr,
    ALIGN_I: tl.constexpr, ALIGN_O: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One (BLOCK_B, BLOCK_O) tile of y and its share of every row's sums.

    A small tile has work for one warp. PARTS then cut each BLOCK_I among the warps, so that few programs keep
    many bytes in flight; their sums are added last.
    """
    I = I // ALIGN_I * ALIGN_I
    O = O // ALIGN_O * ALIGN_O
    stride_xb = stride_xb // ALIGN_I * ALIGN_I
    stride_wo = stride_wo // ALIGN_I * ALIGN_I
    stride_vc = stride_vc // ALIGN_O * ALIGN_O
    # Row tiles run fastest: programs that share a weight tile are neighbours in time and meet in L2.
    tiles_b = tl.cdiv(B, BLOCK_B)
    tile_o, tile_b = tl.program_id(0) // tiles_b, tl.program_id(0) % tiles_b
    offs_b = tile_b * BLOCK_B + tl.arange(0, BLOCK_B)
    offs_o = tile_o * BLOCK_O + tl.arange(0, BLOCK_O)
    mask_b, mask_o = offs_b < B, offs_o < O
    x_rows = x_ptr + offs_b.to(tl.int64)[:, None] * stride_xb
    weight_rows = weight_ptr + offs_o.to(tl.int64)[:, None] * stride_wo
    # Asked for here, so that the loop hides the wait.
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + offs_o.to(tl.int64) * stride_b, mask=mask_o, other=0.0)
    if not ALL_CLASSES and target_ptr is not None:
        label, valid = load_labels(target_ptr, stride_t, offs_b, B, C)

    if PARTS == 1:
        z = tl.zeros((BLOCK_B, BLOCK_O), tl.float32)
    else:
        z = tl.zeros((PARTS, BLOCK_B, BLOCK_O), tl.float32)
    if PREFETCH:
        x = _load_columns(x_rows, stride_xi, mask_b, 0, I, BLOCK_I)
        weight = _load_columns(weight_rows, stride_wi, mask_o, 0, I, BLOCK_I)
        for start in range(BLOCK_I, I + BLOCK_I, BLOCK_I):
            next_x = _load_columns(x_rows, stride_xi, mask_b, start, I, BLOCK_I)
            next_weight = _load_columns(weight_rows, stride_wi, mask_o, start, I, BLOCK_I)
            z = _add_product(z, x, weight, PARTS, PRECISION)
            x = next_x
            weight = next_weight
    else:
        for start in range(0, I, BLOCK_I):
            x = _load_columns(x_rows, stride_xi, mask_b, start, I, BLOCK_I)
            weight = _load_columns(weight_rows, stride_wi, mask_o, start, I, BLOCK_I)
            z = _add_product(z, x, weight, PARTS, PRECISION)
    if PARTS > 1:
        z = tl.sum(z, axis=0)
    if bias_ptr is not None:
        z += bias.to(tl.float32)[None, :]
    y = activate(z, _layer_slope(slope_ptr, NEGATIVE_SLOPE), ACTIVATION)
    # Beyond O, an input that is no finite number times a weight of 0 would be NaN.
    y = tl.where(mask_o[None, :], y, 0.0).to(y_ptr.dtype.element_ty)

    offs_y = offs_b.to(tl.int64)[:, None] * O + offs_o[None, :]
    mask_y = mask_b[:, None] & mask_o[None, :]
    tl.store(y_ptr + offs_y, y, mask=mask_y)
    if z_ptr is not None:
        tl.store(z_ptr + offs_y, z.to(z_ptr.dtype.element_ty), mask=mask_y)

    wide = y.to(tl.float32)
    squares_ptr += tile_o.to(tl.int64) * stride_squares
    dots_ptr += tile_o.to(tl.int64) * stride_dots
    tl.store(squares_ptr + offs_b, tl.sum(wide * wide, axis=1), mask=mask_b)
    vector_columns = vectors_ptr + offs_o.to(tl.int64)[None, :] * stride_vo
    if ALL_CLASSES:
        for start in range(0, C, BLOCK_C):
            offs_c = start + tl.arange(0, BLOCK_C)
            mask_c = offs_c < C
            vectors = tl.load(vector_columns + offs_c.to(tl.int64)[:, None] * stride_vc,
                              mask=mask_c[:, None] & mask_o[None, :], other=0.0)  # fmt: skip
            dots = tl.dot(
                y, tl.trans(vectors.to(y.dtype)), input_precision=PRECISION
            )  # (BLOCK_B, BLOCK_C)
            tl.store(dots_ptr + offs_b.to(tl.int64)[:, None] * stride_dotb + offs_c[None, :], dots,
                     mask=mask_b[:, None] & (offs_c < stride_dotb)[None, :])  # fmt: skip
    elif target_ptr is not None:
        vectors = tl.load(vector_columns + label[:, None] * stride_vc,
                          mask=valid[:, None] & mask_o[None, :], other=0.0)  # fmt: skip
        tl.store(dots_ptr + offs_b, tl.sum(wide * vectors.to(tl.float32), axis=1), mask=mask_b)


@triton.jit
def _added_up(ptr, T, stride, offs, mask, BLOCK_T: tl.constexpr):
    """Sums, shaped like the (M, N) offsets, of what T column tiles have left, `stride` apart."""
    total = tl.zeros(offs.shape, tl.float32)
    # One wait for BLOCK_T of them.
    for start in range(0, T, BLOCK_T):
        offs_t = start + tl.arange(0, BLOCK_T)[:, None, None]
        shares = tl.load(ptr + offs_t.to(tl.int64) * stride + offs[None, :, :],
                         mask=(offs_t < T) & mask[None, :, :], other=0.0)  # fmt: skip
        total += tl.sum(shares, axis=0)
    return total


@triton.jit
def _class_cosines(
    dots_ptr, stride_dots, stride_dotb, offs_b, offs_c, inverse, B, T,
    SAVED: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Cosines of a (rows, classes) tile: its sums over the norm."""
    offs = offs_b.to(tl.int64)[:, None] * stride_dotb + offs_c[None, :]
    mask = (offs_b < B)[:, None] & (offs_c < stride_dotb)[None, :]
    if SAVED:
        return tl.load(dots_ptr + offs, mask=mask, other=0.0)
    else:
        return _added_up(dots_ptr, T, stride_dots, offs, mask, BLOCK_T) * inverse[:, None]


@triton.jit
def _row_sums(ptr, T, stride, offs_b, mask_b, BLOCK_T: tl.constexpr):
    """Rows' sums (BLOCK_B,) of what T column tiles have left; 0 beyond the mask."""
    return tl.sum(_added_up(ptr, T, stride, offs_b[None, :], mask_b[None, :], BLOCK_T), axis=0)


@triton.jit
def finalise_kernel(
    squares_ptr,  # (T, B) fp32; unused when SAVED
    dots_ptr,  # (T, B) or (T, B, C) fp32; when SAVED the cosines (B,) or (B, C)
    y_ptr,  # (B, O)
    z_ptr,  # (B, O) or None where phi' follows from y
    vectors_ptr,  # (C, O)
    target_ptr,  # (B,) int64, or None: cosines only
    slope_ptr,  # (1,) or None
    norm_ptr,  # (B,) fp32: written; read when SAVED
    cosine_ptr,  # (B,) or (B, C) fp32; unused when SAVED
    losses_ptr,  # (B,) fp32 or None; NaN where the label is none
    dz_ptr,  # (B, O) contiguous, or None: B dL/dz
    dslope_ptr,  # (programs,) fp32 or None: partial sums of B dL/dslope, for prelu
    B, O, C, T,
    stride_yb, stride_yo, stride_zb, stride_zo, stride_vc, stride_vo, stride_t,
    stride_squares, stride_dots, stride_dotb,
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr,
    OBJECTIVE: tl.constexpr, SCALE: tl.constexpr, ALL_CLASSES: tl.constexpr,
    SAVED: tl.constexpr, PRECISION: tl.constexpr, ALIGN_O: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Row scalars of a block of rows; with `dz_ptr` also one (BLOCK_B, BLOCK_O) tile of dL/dz.

    With a row's cosines s to the class vectors V, n = |y| and q = B dL/ds, as in `objectives.py`:

        B dL/dy = (q V - <q, s> y / n) / n = (pull - drift y / n) / n

    An objective of the label's cosine c has one q, f'(c): pull = f'(c) v, drift = f'(c) c. Cross-entropy of
    SCALE s has q = SCALE (p - label's 1) with p = softmax(SCALE s), so drift = SCALE (<p, s> - c): the loop
    that finds p's normaliser finds <p, s> (`mean`) too, and a second one multiplies q V. dL/dz = dL/dy phi'.

    dL/dz is stored where every program of `update` would otherwise repeat work that does not fit it:
    the product q V of an all-class objective, and the sum over all of dz that prelu's slope needs.
    """
    O = O // ALIGN_O * ALIGN_O
    stride_yb = stride_yb // ALIGN_O * ALIGN_O
    stride_zb = stride_zb // ALIGN_O * ALIGN_O
    stride_vc = stride_vc // ALIGN_O * ALIGN_O
    tiles_o = 1
    if dz_ptr is not None:
        tiles_o = tl.cdiv(O, BLOCK_O)
    tile_b, tile_o = tl.program_id(0) // tiles_o, tl.program_id(0) % tiles_o
    offs_b = tile_b * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = offs_b < B
    # One program of the row block writes the rows' results.
    mask_write = offs_b < tl.where(tile_o == 0, B, 0)

    if SAVED:
        norm = tl.load(norm_ptr + offs_b, mask=mask_b, other=0.0)
    else:
        squares = _row_sums(squares_ptr, T, stride_squares, offs_b, mask_b, BLOCK_T)
        norm = tl.sqrt(squares)
        tl.store(norm_ptr + offs_b, norm, mask=mask_write)
    inverse = inverse_norm(norm)
    if target_ptr is not None:
        label, valid = load_labels(target_ptr, stride_t, offs_b, B, C)

    if ALL_CLASSES:
        # Over class tiles with a running maximum of the logits: total = sum exp, mean = sum exp s.
        peak = tl.full((BLOCK_B,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_B,), tl.float32)
        mean = tl.zeros((BLOCK_B,), tl.float32)
        own = tl.zeros((BLOCK_B,), tl.float32)
        for start in range(0, C, BLOCK_C):
            offs_c = start + tl.arange(0, BLOCK_C)
            cosine = _class_cosines(
                dots_ptr, stride_dots, stride_dotb, offs_b, offs_c, inverse, B, T, SAVED, BLOCK_T
            )  # fmt: skip
            if not SAVED:
                tl.store(cosine_ptr + offs_b.to(tl.int64)[:, None] * C + offs_c[None, :], cosine,
                         mask=mask_write[:, None] & (offs_c < C)[None, :])  # fmt: skip
            if target_ptr is not None:
                logits = tl.where((offs_c < C)[None, :], SCALE * cosine, float("-inf"))
                higher = tl.maximum(peak, tl.max(logits, axis=1))
                decay, share = tl.exp(peak - higher), tl.exp(logits - higher[:, None])
                total = total * decay + tl.sum(share, axis=1)
                mean = mean * decay + tl.sum(share * cosine, axis=1)
                own += tl.sum(tl.where(offs_c[None, :] == label[:, None], cosine, 0.0), axis=1)
                peak = higher
        if target_ptr is not None:
            tl.static_assert(OBJECTIVE == "softmax", "unknown all-class objective")
            loss = peak + tl.log(total) - SCALE * own
            drift = SCALE * (mean / total - own)  # <q, s>
    else:
        if SAVED:
            own = tl.load(dots_ptr + offs_b, mask=mask_b, other=0.0)
        else:
            own = _row_sums(dots_ptr, T, stride_dots, offs_b, mask_b, BLOCK_T)
            own *= inverse
            tl.store(cosine_ptr + offs_b, own, mask=mask_write)
        loss = label_loss(own, OBJECTIVE)
        drift = label_derivative(own, OBJECTIVE) * own
    if losses_ptr is not None:
        tl.store(losses_ptr + offs_b, tl.where(valid, loss, float("nan")), mask=mask_write)

    if dz_ptr is not None:
        offs_o = tile_o * BLOCK_O + tl.arange(0, BLOCK_O)
        mask_o = offs_o < O
        mask = mask_b[:, None] & mask_o[None, :]
        vector_columns = vectors_ptr + offs_o.to(tl.int64)[None, :] * stride_vo
        if ALL_CLASSES:
            pull = tl.zeros((BLOCK_B, BLOCK_O), tl.float32)
            for start in range(0, C, BLOCK_C):
                offs_c = start + tl.arange(0, BLOCK_C)
                cosine = _class_cosines(
                    dots_ptr, stride_dots, stride_dotb, offs_b, offs_c, inverse, B, T,
                    SAVED, BLOCK_T,
                )  # fmt: skip
                q = tl.exp(SCALE * cosine - peak[:, None]) / total[:, None]
                q = SCALE * (q - tl.where(offs_c[None, :] == label[:, None], 1.0, 0.0))
                q = tl.where((offs_c < C)[None, :], q, 0.0)
                vectors = tl.load(vector_columns + offs_c.to(tl.int64)[:, None] * stride_vc,
                                  mask=(offs_c < C)[:, None] & mask_o[None, :], other=0.0)  # fmt: skip
                pull = tl.dot(q, vectors.to(tl.float32), pull, input_precision=PRECISION)
        else:
            vectors = tl.load(vector_columns + label[:, None] * stride_vc,
                              mask=valid[:, None] & mask_o[None, :], other=0.0)  # fmt: skip
            pull = label_derivative(own, OBJECTIVE)[:, None] * vectors.to(tl.float32)
        length = tl.where(valid, inverse_norm(norm), 0.0)[:, None]
        y = tl.load(y_ptr + offs_b.to(tl.int64)[:, None] * stride_yb
                    + offs_o.to(tl.int64)[None, :] * stride_yo, mask=mask, other=0.0)  # fmt: skip
        y = y.to(tl.float32)
        v = y
        if z_ptr is not None:
            v = tl.load(z_ptr + offs_b.to(tl.int64)[:, None] * stride_zb
                        + offs_o.to(tl.int64)[None, :] * stride_zo, mask=mask, other=0.0)  # fmt: skip
            v = v.to(tl.float32)
        dy = tl.where(valid[:, None], pull - drift[:, None] * length * y, 0.0) * length
        dz = dy * activation_slope(v, _layer_slope(slope_ptr, NEGATIVE_SLOPE), ACTIVATION)
        tl.store(dz_ptr + offs_b.to(tl.int64)[:, None] * O + offs_o[None, :],
                 narrowed(dz, dz_ptr.dtype.element_ty), mask=mask)  # fmt: skip
        if dslope_ptr is not None:
            tl.store(dslope_ptr + tl.program_id(0), tl.sum(dy * tl.minimum(v, 0.0)))
