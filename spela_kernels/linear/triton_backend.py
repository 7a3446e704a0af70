"""The linear layer's Triton back-end: `reference.py`'s functions, each a few launches.

Where the kernels cannot take a call (float64, bf16 on Turing, no tile that fits) the reference does, and
one warning says so.

Axes: B batch, I in, O out, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spela_kernels.activations import get_activation
from spela_kernels.gpu.fallback import guarded, on_device, step_on_device, warn_of_fallback
from spela_kernels.linear import reference
from spela_kernels.linear.launch import (
    Plan,
    Projected,
    Rows,
    launch_finalise,
    launch_forward,
    launch_update,
)
from spela_kernels.linear.types import Buffers, Call, Forward, Gradient
from spela_kernels.rules import Step

__all__ = ["backward", "forward", "scores", "step_"]


def scores(call: Call) -> tuple[Tensor, Tensor]:
    """Layer output (B, O) and its cosines to every class vector (B, C)."""

    def run() -> tuple[Tensor, Tensor]:
        plan = Plan(call._replace(target=None))
        projected = launch_forward(plan)
        return projected.y, launch_finalise(plan, projected).cosine

    return guarded(run, lambda: reference.scores(call), call.x)


def forward(call: Call) -> Forward:
    """y = phi(x W^T + b), its row norms and cosines, and the mean loss (NaN if a label is none)."""

    def run() -> Forward:
        plan = Plan(call)
        projected = launch_forward(plan)
        rows = launch_finalise(plan, projected)
        kept = projected.y.new_empty(0) if projected.z is None else projected.z
        return Forward(rows.losses.mean(), projected.y, kept, rows.norm, rows.cosine)

    return guarded(run, lambda: reference.forward(call), call.x)


def backward(call: Call, saved: Forward, grad_loss: Tensor | None = None) -> Gradient:
    """Gradients of grad_loss * loss (None: 1) for weight, bias and slope, from what `forward` saved."""

    def run() -> Gradient:
        plan = Plan(call)
        z = saved.pre_activation if get_activation(call.settings.activation).needs_input else None
        projected = Projected(saved.y, z, saved.norm.contiguous(), saved.cosine.contiguous())
        rows = Rows(projected.squares, projected.dots, projected.squares, None, None)
        if plan.stores_dz:
            rows = launch_finalise(plan, projected, saved=True, gradient=True)
        weight, bias, slope = call.params
        outputs = Gradient(
            torch.empty_like(weight),
            None if bias is None else torch.empty_like(bias),
            None if slope is None else torch.empty_like(slope),
        )
        launch_update(plan, projected, rows, outputs, grad_loss=on_device(call.x, grad_loss))
        return outputs

    return guarded(run, lambda: reference.backward(call, saved, grad_loss), call.x)


def step_(call: Call, step: Step[Buffers]) -> tuple[Tensor, Tensor]:
    """Forward, closed-form gradient, update in place: loss () and y (B, O), both from before it."""
    # The kernel has one set of strides for both buffers of a parameter.
    for first, second in zip(step.first, step.second, strict=True):
        if first is not None and second is not None and first.stride() != second.stride():
            warn_of_fallback("optimizer buffers of one parameter differ in their strides")
            return reference.step_(call, step)

    def run() -> tuple[Tensor, Tensor]:
        plan = Plan(call)
        projected = launch_forward(plan)
        rows = launch_finalise(plan, projected, gradient=True)
        loss = call.x.new_empty((), dtype=torch.float32)
        launch_update(
            plan, projected, rows, call.params, step=step_on_device(call.x, step), loss=loss
        )
        return loss, projected.y

    return guarded(run, lambda: reference.step_(call, step), call.x)
