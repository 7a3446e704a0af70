"""The grouped projection's Triton back-end: `reference.py`'s functions, each a few launches.

Where the kernels cannot take a call (float64, bf16 on Turing, rows longer than a tile) the reference
does, and one warning says so.

Axes: B batch, K kernels, D pooled map size, d symmetric dimension, G groups, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from spela_kernels.gpu.fallback import guarded, on_device, step_on_device, warn_of_fallback
from spela_kernels.projection import reference
from spela_kernels.projection.configs import LARGEST_CLASSES, LARGEST_DIM
from spela_kernels.projection.launch import (
    Plan,
    launch_classes,
    launch_forward,
    launch_gradient,
    launch_update,
)
from spela_kernels.projection.types import Call, Forward, Gradient
from spela_kernels.rules import Step

__all__ = ["backward", "forward", "scores", "step_"]

_Result = TypeVar("_Result")


def _run(call: Call, run: Callable[[], _Result], fallback: Callable[[], _Result]) -> _Result:
    if call.projection.shape[2] > LARGEST_DIM:
        warn_of_fallback(f"no kernels for a projection to more than {LARGEST_DIM} dimensions")
        return fallback()
    if call.groups.shape[1] > LARGEST_CLASSES:
        warn_of_fallback(f"no kernels for a projection to more than {LARGEST_CLASSES} classes")
        return fallback()
    return guarded(run, fallback, call.z)


def scores(call: Call) -> Tensor:
    """Class scores (B, C): cosines to the classes' vectors, averaged over kernels."""

    def run() -> Tensor:
        plan = Plan(call._replace(target=None))
        cosine = launch_forward(plan, saves=False).cosine
        return launch_classes(plan, cosine, loss=False, gradient=False).scores

    return _run(call, run, lambda: reference.scores(call))


def forward(call: Call) -> Forward:
    """p = z P, its norms and cosines, and the mean loss (NaN if a label is none)."""

    def run() -> Forward:
        plan = Plan(call)
        p, norm, cosine, shares, _ = launch_forward(plan, saves=True)
        if plan.all_classes:
            shares = launch_classes(plan, cosine, loss=True, gradient=False).shares
        return Forward(shares.sum(), p, norm, cosine)

    return _run(call, run, lambda: reference.forward(call))


def backward(call: Call, saved: Forward, grad_loss: Tensor | None = None) -> Gradient:
    """Gradients of grad_loss * loss (None: 1) for z and the projection, from what `forward` saved."""

    def run() -> Gradient:
        plan = Plan(call)
        p, norm, cosine = (tensor.contiguous() for tensor in saved[1:])
        q = None
        if plan.all_classes:
            q = launch_classes(plan, cosine, loss=False, gradient=True).q
        dp = launch_gradient(plan, p, norm, cosine, q)
        dprojection = call.projection.new_empty(call.projection.shape)
        dz = launch_update(plan, dp, dprojection, grad_loss=on_device(call.z, grad_loss))
        return Gradient(dz, dprojection)

    return _run(call, run, lambda: reference.backward(call, saved, grad_loss))


def step_(call: Call, step: Step[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Forward, closed-form gradient, update in place: loss () and dz (B, K, D), both from before it."""
    first, second = step.first, step.second
    # The kernel has one set of strides for both buffers.
    if first is not None and second is not None and first.stride() != second.stride():
        warn_of_fallback("optimizer buffers of one parameter differ in their strides")
        return reference.step_(call, step)

    def run() -> tuple[Tensor, Tensor]:
        plan = Plan(call)
        p, norm, cosine, shares, dp = launch_forward(plan, saves=plan.all_classes, gradient=True)
        if plan.all_classes:
            _, shares, q = launch_classes(plan, cosine, loss=True, gradient=True)
            dp = launch_gradient(plan, p, norm, cosine, q)
        loss = shares.new_empty(())
        placed = step_on_device(call.z, step)
        dz = launch_update(plan, dp, call.projection, step=placed, shares=shares, loss=loss)
        return loss, dz

    return _run(call, run, lambda: reference.step_(call, step))
