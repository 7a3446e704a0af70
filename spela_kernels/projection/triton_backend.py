"""The grouped projection's Triton back-end: `reference.py`'s functions, each a few launches.

Where the kernels cannot take a call (float64, bf16 on Turing, rows longer than a tile) the reference
does, and one warning says so.

Axes: B batch, K kernels, D pooled map size, d symmetric dimension, G groups, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from spela_kernels.contracts import Settings
from spela_kernels.guarding import guarded, on_device, warn_of_fallback
from spela_kernels.projection import reference
from spela_kernels.projection.configs import LARGEST_DIM
from spela_kernels.projection.launch import (
    Projection,
    Update,
    launch_classes,
    launch_forward,
    launch_gradient,
    launch_update,
)
from spela_kernels.projection.types import Forward, Gradient
from spela_kernels.rules import AdamRule, SgdRule

__all__ = ["adam_step_", "backward", "forward", "scores", "sgd_step_"]

_Result = TypeVar("_Result")
_Stepped = tuple[Tensor, Tensor]


def _run(call: Projection, run: Callable[[], _Result], fallback: Callable[[], _Result]) -> _Result:
    if call.problem.dim > LARGEST_DIM:
        warn_of_fallback(f"no kernels for a projection to more than {LARGEST_DIM} dimensions")
        return fallback()
    return guarded(run, fallback, call.z)


def scores(z: Tensor, projection: Tensor, vectors: Tensor, groups: Tensor) -> Tensor:
    """Class scores (B, C): cosines to the classes' vectors, averaged over kernels."""
    call = Projection(z, projection, vectors, groups, None, Settings())

    def run() -> Tensor:
        cosine = launch_forward(call, saves=False).cosine
        return launch_classes(call, cosine, loss=False, gradient=False).scores

    return _run(call, run, lambda: reference.scores(z, projection, vectors, groups))


def forward(
    z: Tensor,
    projection: Tensor,
    vectors: Tensor,
    groups: Tensor,
    target: Tensor,
    settings: Settings,
) -> Forward:
    """p = z P, its norms and cosines, and the mean loss (NaN if a label is none)."""
    call = Projection(z, projection, vectors, groups, target, settings)

    def run() -> Forward:
        p, norm, cosine, shares, _ = launch_forward(call, saves=True)
        if call.all_classes:
            shares = launch_classes(call, cosine, loss=True, gradient=False).shares
        return Forward(shares.sum(), p, norm, cosine)

    return _run(
        call, run, lambda: reference.forward(z, projection, vectors, groups, target, settings)
    )


def backward(
    z: Tensor,
    projection: Tensor,
    vectors: Tensor,
    groups: Tensor,
    target: Tensor,
    settings: Settings,
    saved: Forward,
    grad_loss: Tensor | None = None,
) -> Gradient:
    """Gradients of grad_loss * loss (None: 1) for z and the projection, from what `forward` saved."""
    call = Projection(z, projection, vectors, groups, target, settings)

    def run() -> Gradient:
        p, norm, cosine = (tensor.contiguous() for tensor in saved[1:])
        q = None
        if call.all_classes:
            q = launch_classes(call, cosine, loss=False, gradient=True).q
        dp = launch_gradient(call, p, norm, cosine, q)
        dprojection = projection.new_empty(projection.shape)
        update = Update(grad_loss=on_device(z, grad_loss))
        return Gradient(launch_update(call, dp, update, dprojection), dprojection)

    def fallback() -> Gradient:
        return reference.backward(
            z, projection, vectors, groups, target, settings, saved, grad_loss
        )

    return _run(call, run, fallback)


def _step(call: Projection, update: Update, fallback: Callable[[], _Stepped]) -> _Stepped:
    """Loss () and dz (B, K, D) from before the update."""
    if not update.one_layout():
        warn_of_fallback("optimizer buffers of one parameter differ in their strides")
        return fallback()

    def run() -> _Stepped:
        p, norm, cosine, shares, dp = launch_forward(call, saves=call.all_classes, gradient=True)
        if call.all_classes:
            _, shares, q = launch_classes(call, cosine, loss=True, gradient=True)
            dp = launch_gradient(call, p, norm, cosine, q)
        loss = shares.new_empty(())
        return loss, launch_update(call, dp, update, call.projection, shares, loss)

    return _run(call, run, fallback)


def sgd_step_(
    z: Tensor,
    projection: Tensor,
    vectors: Tensor,
    groups: Tensor,
    target: Tensor,
    settings: Settings,
    momentum_buffer: Tensor | None,
    lr: Tensor,
    rule: SgdRule,
) -> tuple[Tensor, Tensor]:
    """Loss and dz (B, K, D) from before torch.optim.SGD's update (dampening 0) of the projection."""
    return _step(
        Projection(z, projection, vectors, groups, target, settings),
        Update("sgd", *rule, lr=on_device(z, lr), first=momentum_buffer),
        lambda: reference.sgd_step_(
            z, projection, vectors, groups, target, settings, momentum_buffer, lr, rule
        ),
    )


def adam_step_(
    z: Tensor,
    projection: Tensor,
    vectors: Tensor,
    groups: Tensor,
    target: Tensor,
    settings: Settings,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: Tensor,
    rule: AdamRule,
) -> tuple[Tensor, Tensor]:
    """Loss and dz (B, K, D) from before torch.optim.Adam's update; `step` counts from 1."""
    update = Update(
        "adam", weight_decay=rule.weight_decay, beta1=rule.beta1, beta2=rule.beta2, eps=rule.eps,
        lr=on_device(z, lr), step=on_device(z, step), first=exp_avg, second=exp_avg_sq,
    )  # fmt: skip
    return _step(
        Projection(z, projection, vectors, groups, target, settings),
        update,
        lambda: reference.adam_step_(
            z, projection, vectors, groups, target, settings, exp_avg, exp_avg_sq, step, lr, rule
        ),
    )
