"""The linear layer's ops: checked, registered with torch.library, run by the chosen back-end.

One op boundary per layer step. Each op ends in the layer's `Settings`, spelt out because a schema holds
plain values only; the documented functions that users call are in `functional.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from spela_kernels.activations import get_activation
from spela_kernels.backend import asked_backend, select_backend, use_backend
from spela_kernels.contracts import Settings, check_labels, check_linear, check_target
from spela_kernels.linear.types import NO_BUFFERS, Buffers, Call, Forward, Parameters
from spela_kernels.objectives import get_objective
from spela_kernels.rules import AdamRule, SgdRule, Step, check_state, check_updated

__all__ = ["adam_op", "forward_op", "loss_backward_op", "loss_op", "sgd_op"]

_MODULES = {
    "triton": "spela_kernels.linear.triton_backend",
    "cpu": "spela_kernels.linear.cpu",
    "reference": "spela_kernels.linear.reference",
}

_LAYER = "Tensor x, Tensor weight, Tensor? bias, Tensor? slope, Tensor vectors"
_UPDATED = "Tensor x, Tensor(a!) weight, Tensor(b!)? bias, Tensor(c!)? slope, Tensor vectors"
_SETTINGS = "str activation, float negative_slope, str objective, float scale"
_NAMES = ("weight", "bias", "slope")


_import = functools.cache(import_module)


def _backend(call: Call) -> ModuleType:
    return _import(_MODULES[select_backend(call.x.device, call.settings)])


def _call(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slope: Tensor | None,
    vectors: Tensor,
    target: Tensor | None,
    settings: tuple[Any, ...],
) -> Call:
    """Bundle and check what every op is given; labels' values only where that costs no wait."""
    bundle = Settings(*settings)
    check_linear(x, weight, bias, slope, vectors, bundle)
    if target is not None:
        check_target(x, target)
        check_labels(target, vectors.shape[0])
    return Call(x, Parameters(weight, bias, slope), vectors, target, bundle)


def _forward(x, weight, bias, slope, vectors, *settings):  # type: ignore[no-untyped-def]
    call = _call(x, weight, bias, slope, vectors, None, settings)
    if x.shape[0] == 0:
        return _no_scores(x, weight, vectors)
    return _backend(call).scores(call)


def _no_scores(x: Tensor, weight: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """y (B, O) and scores (B, C) without values, which an empty batch has none of."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.new_empty(x.shape[0], weight.shape[0])
    return y, x.new_empty(x.shape[0], vectors.shape[0], dtype=wide)


forward_op = torch.library.custom_op(
    "spela::linear_forward",
    _forward,
    mutates_args=(),
    schema=f"({_LAYER}, {_SETTINGS}) -> (Tensor, Tensor)",
)


@forward_op.register_fake
def _(x, weight, bias, slope, vectors, *settings):  # type: ignore[no-untyped-def]
    _call(x, weight, bias, slope, vectors, None, settings)
    return _no_scores(x, weight, vectors)


def _loss(x, weight, bias, slope, vectors, target, *settings):  # type: ignore[no-untyped-def]
    call = _call(x, weight, bias, slope, vectors, target, settings)
    return tuple(_backend(call).forward(call))


loss_op = torch.library.custom_op(
    "spela::linear_loss",
    _loss,
    mutates_args=(),
    schema=f"({_LAYER}, Tensor target, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@loss_op.register_fake
def _(x, weight, bias, slope, vectors, target, *settings):  # type: ignore[no-untyped-def]
    bundle = _call(x, weight, bias, slope, vectors, target, settings).settings
    rows, wide = x.shape[0], torch.promote_types(x.dtype, torch.float32)
    y = x.new_empty(rows, weight.shape[0])
    needs_input = get_activation(bundle.activation).needs_input
    classes = (vectors.shape[0],) if get_objective(bundle.objective).all_classes else ()
    return (
        x.new_empty((), dtype=wide),
        y,
        torch.empty_like(y) if needs_input else y.new_empty(0),
        x.new_empty(rows, dtype=wide),
        x.new_empty(rows, *classes, dtype=wide),
    )


def _loss_backward(  # type: ignore[no-untyped-def]
    grad_loss, x, weight, bias, slope, vectors, target, y, pre_activation, norm, cosine, *settings
):
    call = _call(x, weight, bias, slope, vectors, target, settings)
    saved = Forward(norm.new_empty(()), y, pre_activation, norm, cosine)
    gradients = _backend(call).backward(call, saved, grad_loss)
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in gradients)


loss_backward_op = torch.library.custom_op(
    "spela::linear_loss_backward",
    _loss_backward,
    mutates_args=(),
    schema=f"(Tensor? grad_loss, {_LAYER}, Tensor target, Tensor y, Tensor pre_activation, "
    f"Tensor norm, Tensor cosine, {_SETTINGS}) -> (Tensor, Tensor, Tensor)",
)


@loss_backward_op.register_fake
def _(grad_loss, x, weight, bias, slope, *rest):  # type: ignore[no-untyped-def]
    return tuple(
        x.new_empty(0) if parameter is None else parameter.new_empty(parameter.shape)
        for parameter in (weight, bias, slope)
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, ctx.settings = inputs[:6], inputs[6:]
    ctx.backend = asked_backend()
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output[1:])


def _local_gradient(ctx: Any, grad_loss: Tensor, *unused: Tensor | None) -> tuple[Any, ...]:
    parameters = ctx.saved_tensors[1:4]
    with use_backend(ctx.backend):
        gradients = loss_backward_op(grad_loss, *ctx.saved_tensors, *ctx.settings)
    given = (
        None if parameter is None else gradient
        for parameter, gradient in zip(parameters, gradients, strict=True)
    )
    # x, vectors, target and the settings get none: learning is local.
    return (None, *given, *(None,) * (2 + len(ctx.settings)))


loss_op.register_autograd(_local_gradient, setup_context=_save_for_backward)


def _step_fake(x, weight, bias, slope, vectors, target, *rest):  # type: ignore[no-untyped-def]
    _call(x, weight, bias, slope, vectors, target, rest[-4:])
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty((), dtype=wide), x.new_empty(x.shape[0], weight.shape[0])


# The step ops are defined on the library itself: the general wrappers of `custom_op` would slow a small
# layer's step on the CPU. They have no gradient, so nothing else of `custom_op` is missed.
_library = torch.library.Library("spela", "FRAGMENT")


def _define_step(name: str, run: Callable[..., Any], schema: str) -> Callable[..., Any]:
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"spela::{name}", _step_fake, lib=_library)
    return getattr(torch.ops.spela, name).default


def _step(call: Call, step: Step[Buffers]) -> tuple[Tensor, Tensor]:
    check_updated((*call.params, *step.first, *step.second), (call.x, call.vectors))
    done = _backend(call).step_(call, step)
    # Autograd must learn that what it saved of the parameters has changed: it does not see kernels write.
    torch.autograd.graph.increment_version([p for p in call.params if p is not None])
    return done


def _sgd(  # type: ignore[no-untyped-def]
    x, weight, bias, slope, vectors, target, m_weight, m_bias, m_slope, lr, *rest
):
    call = _call(x, weight, bias, slope, vectors, target, rest[-4:])
    rule, buffers = SgdRule(*rest[:-4]), (m_weight, m_bias, m_slope)
    if rule.momentum != 0 or m_weight is not None:
        for name, buffer, parameter in zip(_NAMES, buffers, call.params, strict=True):
            check_state(f"momentum of {name}", buffer, parameter)
    return _step(call, Step(rule, lr, buffers, NO_BUFFERS))


sgd_op = _define_step(
    "linear_sgd_",
    _sgd,
    f"({_UPDATED}, Tensor target, Tensor(d!)? m_weight, Tensor(e!)? m_bias, "
    "Tensor(f!)? m_slope, Tensor lr, float momentum, float weight_decay, bool nesterov, "
    f"{_SETTINGS}) -> (Tensor, Tensor)",
)


def _adam(  # type: ignore[no-untyped-def]
    x, weight, bias, slope, vectors, target, m_weight, m_bias, m_slope, v_weight, v_bias, v_slope,
    step, lr, *rest
):  # fmt: skip
    call = _call(x, weight, bias, slope, vectors, target, rest[-4:])
    first, second = (m_weight, m_bias, m_slope), (v_weight, v_bias, v_slope)
    for name, m, v, parameter in zip(_NAMES, first, second, call.params, strict=True):
        check_state(f"exp_avg of {name}", m, parameter)
        check_state(f"exp_avg_sq of {name}", v, parameter)
    return _step(call, Step(AdamRule(*rest[:-4]), lr, first, second, step))


adam_op = _define_step(
    "linear_adam_",
    _adam,
    f"({_UPDATED}, Tensor target, Tensor(d!) m_weight, Tensor(e!)? m_bias, "
    "Tensor(f!)? m_slope, Tensor(g!) v_weight, Tensor(h!)? v_bias, Tensor(i!)? v_slope, "
    "Tensor step, Tensor lr, float beta1, float beta2, float eps, float weight_decay, "
    f"{_SETTINGS}) -> (Tensor, Tensor)",
)
