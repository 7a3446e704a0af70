"""The grouped projection's Triton kernels, with `update_kernel.py`; `launch.py` runs them. No torch here.

A step with a label objective is two launches, with an all-class objective four:
    forward    p = z_k P_k, |p|, cosines; for a label objective also the loss and dp
    classes    all-class: scores S, the loss, q = dL/dS
    gradient   all-class, or after a forward of its own: dp from p and q or the label
    update     dz = dp P_k^T and dP_k = z_k^T dp; its epilogue stores or applies the gradient

Nothing is accumulated across programs, so every run gives the same bits. The mean's 1/(B K) is applied
to dz and dP and not to dp, which would underflow in fp16. Addresses are formed in int64, and from no
label or group that is out of range.

ALIGN_D and ALIGN_E promise that rows along D (of z) and along E (of p, P, U) start and end on multiples
of that many elements; `linear/kernels.py` says how. Axes: B batch, K kernels, D pooled map size,
E symmetric dimension (d elsewhere), G groups, C classes. p, norm and cosine are contiguous.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spela_kernels.gpu.formulas import label_derivative, label_loss
from spela_kernels.gpu.loads import inverse_norm, load_labels, load_tile, narrowed, own_tile

__all__ = ["classes_kernel", "forward_kernel", "gradient_kernel"]


@triton.jit
def _label_vectors(vectors_ptr, groups_ptr, target_ptr, offs_b, offs_e, B, E, G, C,
                   stride_ug, stride_ue, stride_gc, stride_t):  # fmt: skip
    """Vectors of the labels' groups (rows, E), and which labels and groups are real."""
    label, valid = load_labels(target_ptr, stride_t, offs_b, B, C)
    group = tl.load(groups_ptr + label * stride_gc, mask=valid, other=-1)
    valid = (group >= 0) & (group < G)
    rows = tl.where(valid, group, 0)[:, None] * stride_ug
    vectors = tl.load(vectors_ptr + rows + offs_e.to(tl.int64)[None, :] * stride_ue,
                      mask=valid[:, None] & (offs_e < E)[None, :], other=0.0)  # fmt: skip
    return vectors.to(tl.float32), valid


@triton.jit
def _through_cosine(pull, p, norm):
    """Gradient of p (rows, E) from sum_j q_j u_j: what is along p does not turn it."""
    inverse = inverse_norm(norm)[:, None]
    unit = p * inverse
    drift = tl.sum(pull * unit, axis=1)[:, None]
    return (pull - drift * unit) * inverse


@triton.jit
def forward_kernel(
    z_ptr,  # (B, K, D)
    projection_ptr,  # (K, D, E)
    vectors_ptr,  # (K, G, E)
    groups_ptr,  # (K, C) int64; unused with ALL_CLASSES
    target_ptr,  # (B,) int64; unused with ALL_CLASSES
    p_ptr,  # (B, K, E) or None
    norm_ptr,  # (B, K) fp32 or None
    cosine_ptr,  # (B, K) fp32 or None: to the label's vector; (B, K, G) with ALL_CLASSES
    shares_ptr,  # (programs,) fp32: shares of the mean loss; unused with ALL_CLASSES
    dp_ptr,  # (B, K, E) or None: B K dL/dp
    B, K, D, E, G, C,
    stride_zb, stride_zk, stride_zd, stride_pk, stride_pd, stride_pe,
    stride_uk, stride_ug, stride_ue, stride_gk, stride_gc, stride_t,
    OBJECTIVE: tl.constexpr, ALL_CLASSES: tl.constexpr,
    PRECISION: tl.constexpr, PREFETCH: tl.constexpr, ALIGN_D: tl.constexpr, ALIGN_E: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """BLOCK_B rows of one kernel, all of E at once."""
    D = D // ALIGN_D * ALIGN_D
    E = E // ALIGN_E * ALIGN_E
    stride_zb = stride_zb // ALIGN_D * ALIGN_D
    stride_zk = stride_zk // ALIGN_D * ALIGN_D
    stride_pk = stride_pk // ALIGN_E * ALIGN_E
    stride_pd = stride_pd // ALIGN_E * ALIGN_E
    stride_uk = stride_uk // ALIGN_E * ALIGN_E
    stride_ug = stride_ug // ALIGN_E * ALIGN_E
    kernel, offs_b = own_tile(B, BLOCK_B)
    offs_e, offs_d = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_D)
    mask_b = offs_b < B
    z_ptr += kernel * stride_zk
    projection_ptr += kernel * stride_pk
    vectors_ptr += kernel * stride_uk

    p = tl.zeros((BLOCK_B, BLOCK_E), tl.float32)
    if PREFETCH:
        z = load_tile(z_ptr, offs_b, stride_zb, B, offs_d, stride_zd, D)
        tile = load_tile(projection_ptr, offs_d, stride_pd, D, offs_e, stride_pe, E)
        for start in range(BLOCK_D, D + BLOCK_D, BLOCK_D):
            next_z = load_tile(z_ptr, offs_b, stride_zb, B, start + offs_d, stride_zd, D)
            next_tile = load_tile(
                projection_ptr, start + offs_d, stride_pd, D, offs_e, stride_pe, E
            )
            p = tl.dot(z, tile.to(z.dtype), p, input_precision=PRECISION)
            z = next_z
            tile = next_tile
    else:
        for start in range(0, D, BLOCK_D):
            z = load_tile(z_ptr, offs_b, stride_zb, B, start + offs_d, stride_zd, D)
            tile = load_tile(projection_ptr, start + offs_d, stride_pd, D, offs_e, stride_pe, E)
            p = tl.dot(z, tile.to(z.dtype), p, input_precision=PRECISION)
    p = p.to(z_ptr.dtype.element_ty)
    wide = p.to(tl.float32)
    norm = tl.sqrt(tl.sum(wide * wide, axis=1))
    inverse = inverse_norm(norm)

    rows = offs_b.to(tl.int64) * K + kernel
    offs_p = rows[:, None] * E + offs_e[None, :]
    mask_p = mask_b[:, None] & (offs_e < E)[None, :]
    if p_ptr is not None:
        tl.store(p_ptr + offs_p, p, mask=mask_p)
    if norm_ptr is not None:
        tl.store(norm_ptr + rows, norm, mask=mask_b)
    if ALL_CLASSES:
        cosine_rows = cosine_ptr + rows * G
        if BLOCK_G == 1:
            for group in range(G):
                vector = tl.load(vectors_ptr + offs_e.to(tl.int64) * stride_ue,
                                 mask=offs_e < E, other=0.0)  # fmt: skip
                dots = tl.sum(wide * vector.to(tl.float32)[None, :], axis=1)
                tl.store(cosine_rows + group, dots * inverse, mask=mask_b)
                vectors_ptr += stride_ug
        else:
            for start in range(0, G, BLOCK_G):
                offs_g = start + tl.arange(0, BLOCK_G)
                vectors = load_tile(vectors_ptr, offs_g, stride_ug, G, offs_e, stride_ue, E)
                dots = tl.dot(p.to(vectors.dtype), tl.trans(vectors), input_precision=PRECISION)
                tl.store(cosine_rows[:, None] + offs_g[None, :], dots * inverse[:, None],
                         mask=mask_b[:, None] & (offs_g < G)[None, :])  # fmt: skip
    else:
        vectors, valid = _label_vectors(
            vectors_ptr, groups_ptr + kernel * stride_gk, target_ptr, offs_b, offs_e, B, E, G, C,
            stride_ug, stride_ue, stride_gc, stride_t,
        )  # fmt: skip
        cosine = tl.sum(wide * vectors, axis=1) * inverse
        if cosine_ptr is not None:
            tl.store(cosine_ptr + rows, cosine, mask=mask_b)
        loss = tl.where(valid, label_loss(cosine, OBJECTIVE), float("nan"))
        share = tl.sum(tl.where(mask_b, loss, 0.0)) * (1.0 / B / K)
        tl.store(shares_ptr + tl.program_id(0), share)
        if dp_ptr is not None:
            pull = label_derivative(cosine, OBJECTIVE)[:, None] * vectors
            dp = tl.where(valid[:, None], _through_cosine(pull, wide, norm), 0.0)
            tl.store(dp_ptr + offs_p, narrowed(dp, dp_ptr.dtype.element_ty), mask=mask_p)


@triton.jit
def classes_kernel(
    cosine_ptr,  # (B, K, G) fp32
    groups_ptr,  # (K, C) int64
    target_ptr,  # (B,) int64, or None: scores only
    scores_ptr,  # (B, C) fp32 or None
    shares_ptr,  # (B,) fp32 or None: shares of the mean loss; NaN where the label is none
    q_ptr,  # (B, C) fp32 or None: B dL/dS
    B, K, G, C,
    stride_gk, stride_gc, stride_t,
    OBJECTIVE: tl.constexpr, SCALE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The class scores of one sample, their softmax and its loss; all classes at once."""
    row = tl.program_id(0).to(tl.int64)
    offs_c = tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    score = tl.zeros((BLOCK_C,), tl.float32)
    strays = tl.zeros((BLOCK_C,), tl.int32)
    for start in range(0, K, BLOCK_K):
        offs_k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        mask = (offs_k < K)[:, None] & mask_c[None, :]
        group = tl.load(groups_ptr + offs_k[:, None] * stride_gk
                        + offs_c.to(tl.int64)[None, :] * stride_gc, mask=mask, other=0)  # fmt: skip
        stray = (group < 0) | (group >= G)
        group = tl.where(stray, 0, group)
        cosine = tl.load(cosine_ptr + (row * K + offs_k)[:, None] * G + group, mask=mask, other=0.0)
        score += tl.sum(tl.where(stray, float("nan"), cosine), axis=0)
        strays += tl.sum(stray.to(tl.int32), axis=0)
    score = score / K
    if scores_ptr is not None:
        tl.store(scores_ptr + row * C + offs_c, score, mask=mask_c)
    if target_ptr is not None:
        tl.static_assert(OBJECTIVE == "softmax", "unknown all-class objective")
        label = tl.load(target_ptr + row * stride_t)
        valid = (label >= 0) & (label < C) & (tl.sum(strays) == 0)
        own = offs_c == label
        peak = SCALE * tl.max(tl.where(mask_c, score, float("-inf")))
        part = tl.where(mask_c, tl.exp(SCALE * score - peak), 0.0)
        total = tl.sum(part)
        if shares_ptr is not None:
            loss = peak + tl.log(total) - SCALE * tl.sum(tl.where(own, score, 0.0))
            tl.store(shares_ptr + row, tl.where(valid, loss, float("nan")) * (1.0 / B))
        if q_ptr is not None:
            q = SCALE * (part / total - tl.where(own, 1.0, 0.0))
            tl.store(q_ptr + row * C + offs_c, tl.where(valid, q, 0.0), mask=mask_c)


@triton.jit
def gradient_kernel(
    p_ptr,  # (B, K, E)
    norm_ptr,  # (B, K) fp32
    cosine_ptr,  # (B, K) fp32; unused with q
    q_ptr,  # (B, C) fp32 from `classes`, or None: label objective
    vectors_ptr,  # (K, G, E)
    groups_ptr,  # (K, C) int64
    target_ptr,  # (B,) int64; unused with q
    dp_ptr,  # (B, K, E): B K dL/dp
    B, K, E, G, C,
    stride_uk, stride_ug, stride_ue, stride_gk, stride_gc, stride_t,
    OBJECTIVE: tl.constexpr, PRECISION: tl.constexpr, ALIGN_E: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dp of BLOCK_B rows of one kernel, all of E at once."""
    E = E // ALIGN_E * ALIGN_E
    stride_uk = stride_uk // ALIGN_E * ALIGN_E
    stride_ug = stride_ug // ALIGN_E * ALIGN_E
    kernel, offs_b = own_tile(B, BLOCK_B)
    offs_e = tl.arange(0, BLOCK_E)
    mask_b = offs_b < B
    vectors_ptr += kernel * stride_uk
    groups_ptr += kernel * stride_gk
    rows = offs_b.to(tl.int64) * K + kernel
    offs_p = rows[:, None] * E + offs_e[None, :]
    mask_p = mask_b[:, None] & (offs_e < E)[None, :]
    p = tl.load(p_ptr + offs_p, mask=mask_p, other=0.0).to(tl.float32)
    norm = tl.load(norm_ptr + rows, mask=mask_b, other=0.0)
    if q_ptr is not None:
        # q U[groups]: a class's vector is looked up, so that no (C, E) table a kernel is ever stored.
        pull = tl.zeros((BLOCK_B, BLOCK_E), tl.float32)
        for start in range(0, C, BLOCK_C):
            offs_c = start + tl.arange(0, BLOCK_C)
            group = tl.load(groups_ptr + offs_c.to(tl.int64) * stride_gc,
                            mask=offs_c < C, other=-1)  # fmt: skip
            real = (group >= 0) & (group < G)
            vectors = tl.load(
                vectors_ptr + tl.where(real, group, 0)[:, None] * stride_ug
                + offs_e.to(tl.int64)[None, :] * stride_ue,
                mask=real[:, None] & (offs_e < E)[None, :], other=0.0,
            )  # fmt: skip
            q = load_tile(q_ptr, offs_b, C, B, offs_c, 1, C)
            pull = tl.dot(q, vectors.to(tl.float32), pull, input_precision=PRECISION)
        dp = _through_cosine(pull, p, norm)
    else:
        vectors, valid = _label_vectors(
            vectors_ptr, groups_ptr, target_ptr, offs_b, offs_e, B, E, G, C,
            stride_ug, stride_ue, stride_gc, stride_t,
        )  # fmt: skip
        cosine = tl.load(cosine_ptr + rows, mask=mask_b, other=0.0)
        pull = label_derivative(cosine, OBJECTIVE)[:, None] * vectors
        dp = tl.where(valid[:, None], _through_cosine(pull, p, norm), 0.0)
    tl.store(dp_ptr + offs_p, narrowed(dp, dp_ptr.dtype.element_ty), mask=mask_p)
