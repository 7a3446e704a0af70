"""The linear layer's Triton back-end: `reference.py`'s functions, each a few launches.

Where the kernels cannot take a call (float64, bf16 on Turing, no tile that fits) the reference does, and
one warning says so.

Axes: B batch, I in, O out, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spela_kernels.activations import get_activation
from spela_kernels.contracts import Settings
from spela_kernels.guarding import guarded, on_device, warn_of_fallback
from spela_kernels.linear import reference
from spela_kernels.linear.launch import (
    NO_STATE,
    Layer,
    Rows,
    Update,
    launch_finalise,
    launch_forward,
    launch_update,
)
from spela_kernels.linear.types import Forward, Gradient, Parameters
from spela_kernels.rules import AdamRule, SgdRule

__all__ = ["adam_step_", "backward", "forward", "scores", "sgd_step_"]

_Stepped = tuple[Tensor, Tensor]


def scores(
    x: Tensor, params: Parameters, vectors: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Layer output (B, O) and its cosines to every class vector (B, C)."""

    def run() -> tuple[Tensor, Tensor]:
        layer = Layer(x, params, vectors, None, settings)
        y, z, squares, dots = launch_forward(layer)
        return y, launch_finalise(layer, y, z, squares, dots).cosine

    return guarded(run, lambda: reference.scores(x, params, vectors, settings), x)


def forward(
    x: Tensor, params: Parameters, vectors: Tensor, target: Tensor, settings: Settings
) -> Forward:
    """y = phi(x W^T + b), its row norms and cosines, and the mean loss (NaN if a label is none)."""

    def run() -> Forward:
        layer = Layer(x, params, vectors, target, settings)
        y, z, squares, dots = launch_forward(layer)
        rows = launch_finalise(layer, y, z, squares, dots)
        kept = y.new_empty(0) if z is None else z
        return Forward(rows.losses.mean(), y, kept, rows.norm, rows.cosine)

    return guarded(run, lambda: reference.forward(x, params, vectors, target, settings), x)


def backward(
    x: Tensor,
    params: Parameters,
    vectors: Tensor,
    target: Tensor,
    settings: Settings,
    saved: Forward,
    grad_loss: Tensor | None = None,
) -> Gradient:
    """Gradients of grad_loss * loss (None: 1) for weight, bias and slope, from what `forward` saved."""

    def run() -> Gradient:
        layer = Layer(x, params, vectors, target, settings)
        z = saved.pre_activation if get_activation(settings.activation).needs_input else None
        norm, cosine = saved.norm.contiguous(), saved.cosine.contiguous()
        rows = Rows(norm, cosine, norm, None, None)
        if layer.stores_dz:
            rows = launch_finalise(layer, saved.y, z, norm, cosine, saved=True, gradient=True)
        weight, bias, slope = params
        outputs = Gradient(
            torch.empty_like(weight),
            None if bias is None else torch.empty_like(bias),
            None if slope is None else torch.empty_like(slope),
        )
        launch_update(layer, saved.y, z, rows, Update(grad_loss=on_device(x, grad_loss)), outputs)
        return outputs

    def fallback() -> Gradient:
        return reference.backward(x, params, vectors, target, settings, saved, grad_loss)

    return guarded(run, fallback, x)


def _step(layer: Layer, update: Update, fallback: Callable[[], _Stepped]) -> _Stepped:
    """The three launches of a step: loss () and y (B, O) from before it."""
    if not update.one_layout():
        warn_of_fallback("optimizer buffers of one parameter differ in their strides")
        return fallback()

    def run() -> _Stepped:
        y, z, squares, dots = launch_forward(layer)
        rows = launch_finalise(layer, y, z, squares, dots, gradient=True)
        loss = layer.x.new_empty((), dtype=torch.float32)
        launch_update(layer, y, z, rows, update, layer.params, loss)
        return loss, y

    return guarded(run, fallback, layer.x)


def sgd_step_(
    x: Tensor,
    params: Parameters,
    vectors: Tensor,
    target: Tensor,
    settings: Settings,
    momentum_buffers: Parameters | None,
    lr: Tensor,
    rule: SgdRule,
) -> tuple[Tensor, Tensor]:
    """Forward, closed-form gradient and torch.optim.SGD's update (dampening 0) in place."""
    update = Update("sgd", *rule, lr=on_device(x, lr), first=momentum_buffers or NO_STATE)
    return _step(
        Layer(x, params, vectors, target, settings),
        update,
        lambda: reference.sgd_step_(
            x, params, vectors, target, settings, momentum_buffers, lr, rule
        ),
    )


def adam_step_(
    x: Tensor,
    params: Parameters,
    vectors: Tensor,
    target: Tensor,
    settings: Settings,
    exp_avgs: Parameters,
    exp_avg_sqs: Parameters,
    step: Tensor,
    lr: Tensor,
    rule: AdamRule,
) -> tuple[Tensor, Tensor]:
    """Forward, closed-form gradient and torch.optim.Adam's update in place; `step` counts from 1."""
    update = Update(
        "adam", weight_decay=rule.weight_decay, beta1=rule.beta1, beta2=rule.beta2, eps=rule.eps,
        lr=on_device(x, lr), step=on_device(x, step), first=exp_avgs, second=exp_avg_sqs,
    )  # fmt: skip
    return _step(
        Layer(x, params, vectors, target, settings),
        update,
        lambda: reference.adam_step_(
            x, params, vectors, target, settings, exp_avgs, exp_avg_sqs, step, lr, rule
        ),
    )
