# mypy: ignore-errors
# ruff: noqa: SIM102 - Triton drops a constexpr `if` only where it stands alone.
"""The grouped projection's last kernel: dz = dp P_k^T, then dP_k = z_k^T dp and the optimizer step.

Both products belong to one program because P has by far the most bytes: the tile that dz needs is the
one the step changes, so P is read here once. `kernels.py` explains ALIGN and the missing 1/(B K).
"""

from __future__ import annotations

import triton
import triton.language as tl

from spela_kernels.gpu.loads import load_tile, narrowed, own_tile
from spela_kernels.gpu.updates import apply_step, ordered_sum

__all__ = ["update_kernel"]


@triton.jit
def update_kernel(
    z_ptr,  # (B, K, D)
    dp_ptr,  # (B, K, E) contiguous: B K dL/dp
    projection_ptr,  # (K, D, E)
    dz_ptr,  # (B, K, D) contiguous
    output_ptr, first_ptr, second_ptr,  # (K, D, E): the projection or its gradient; state or None
    shares_ptr, loss_ptr,  # (shares,) and () fp32, or None: the loss is the sum of its shares
    grad_loss_ptr,  # () or None: factor of all gradients
    lr_ptr, step_ptr,  # () or None
    B, K, D, E, shares,
    stride_zb, stride_zk, stride_zd, stride_pk, stride_pd, stride_pe,
    stride_ok, stride_od, stride_oe, stride_sk, stride_sd, stride_se,  # the output, its state
    RULE: tl.constexpr, NESTEROV: tl.constexpr, DECAYS: tl.constexpr,
    momentum, weight_decay, beta1, beta2, rest1, rest2, log_beta1, log_beta2, adam_eps,  # of the rule
    PRECISION: tl.constexpr, ALIGN_D: tl.constexpr, ALIGN_E: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """BLOCK_D columns of one kernel's dz and as many rows of its dP, all of E.

    With RULE "gradient" the output is where dP goes, otherwise the projection itself.
    """
    D = D // ALIGN_D * ALIGN_D
    E = E // ALIGN_E * ALIGN_E
    stride_zb = stride_zb // ALIGN_D * ALIGN_D
    stride_zk = stride_zk // ALIGN_D * ALIGN_D
    stride_pk = stride_pk // ALIGN_E * ALIGN_E
    stride_pd = stride_pd // ALIGN_E * ALIGN_E
    stride_ok = stride_ok // ALIGN_E * ALIGN_E
    stride_od = stride_od // ALIGN_E * ALIGN_E
    stride_sk = stride_sk // ALIGN_E * ALIGN_E
    stride_sd = stride_sd // ALIGN_E * ALIGN_E
    kernel, offs_d = own_tile(D, BLOCK_D)
    offs_b = tl.arange(0, BLOCK_B)
    offs_e = tl.arange(0, BLOCK_E)
    z_ptr += kernel * stride_zk
    dp_ptr += kernel * E
    factor = 1.0 / B / K
    if grad_loss_ptr is not None:
        factor *= tl.load(grad_loss_ptr).to(tl.float32)

    projection_ptr += kernel * stride_pk
    for start in range(0, B, BLOCK_B):
        rows = start + offs_b
        dz = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
        for first in range(0, E, BLOCK_E):
            columns = first + offs_e
            dp = load_tile(dp_ptr, rows, K * E, B, columns, 1, E)
            tile = load_tile(projection_ptr, offs_d, stride_pd, D, columns, stride_pe, E)
            dz = tl.dot(dp, tl.trans(tile.to(dp.dtype)), dz, input_precision=PRECISION)
        tl.store(
            dz_ptr + (rows.to(tl.int64) * K + kernel)[:, None] * D + offs_d[None, :],
            narrowed(dz * factor, dz_ptr.dtype.element_ty),
            mask=(rows < B)[:, None] & (offs_d < D)[None, :],
        )  # fmt: skip
    if RULE != "gradient":
        tl.debug_barrier()  # every warp has read the old tile before one steps it

    lr, step = 0.0, 0.0
    if lr_ptr is not None:
        lr = tl.load(lr_ptr).to(tl.float32)
    if step_ptr is not None:
        step = tl.load(step_ptr).to(tl.float32)
    wide_d = offs_d.to(tl.int64)[:, None]
    for first in range(0, E, BLOCK_E):
        columns = first + offs_e
        dprojection = tl.zeros((BLOCK_D, BLOCK_E), tl.float32)
        for start in range(0, B, BLOCK_B):
            rows = start + offs_b
            z = load_tile(z_ptr, rows, stride_zb, B, offs_d, stride_zd, D)
            dp = load_tile(dp_ptr, rows, K * E, B, columns, 1, E)
            dprojection = tl.dot(tl.trans(z), dp, dprojection, input_precision=PRECISION)
        wide_e = columns.to(tl.int64)[None, :]
        apply_step(
            dprojection * factor,
            output_ptr, kernel * stride_ok + wide_d * stride_od + wide_e * stride_oe,
            first_ptr, second_ptr, kernel * stride_sk + wide_d * stride_sd + wide_e * stride_se,
            (offs_d < D)[:, None] & (columns < E)[None, :], lr, step,
            RULE, NESTEROV, DECAYS,
            momentum, weight_decay, beta1, beta2, rest1, rest2, log_beta1, log_beta2, adam_eps,
        )  # fmt: skip
    if tl.program_id(0) == 0:
        if loss_ptr is not None:
            tl.store(loss_ptr, ordered_sum(shares_ptr, shares, 256))
