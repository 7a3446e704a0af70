"""The projection's ops: checked, registered with torch.library, run by the chosen back-end.

The step ops update the projection in place and return dz, from which autograd goes on into the
convolution. The documented functions that users call are in `functional.py`.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from spela_kernels.backend import asked_backend, select_backend, use_backend
from spela_kernels.contracts import Settings, check_labels, check_projection, check_target
from spela_kernels.objectives import get_objective
from spela_kernels.projection.types import Call, Forward
from spela_kernels.rules import AdamRule, SgdRule, Step, check_state, check_updated

__all__ = ["adam_op", "forward_op", "loss_backward_op", "loss_op", "sgd_op"]

_MODULES = {
    "triton": "spela_kernels.projection.triton_backend",
    "cpu": "spela_kernels.projection.cpu",
    "reference": "spela_kernels.projection.reference",
}

_TENSORS = "Tensor z, Tensor projection, Tensor vectors, Tensor groups"
_UPDATED = "Tensor z, Tensor(a!) projection, Tensor vectors, Tensor groups, Tensor target"
_SETTINGS = "str objective, float scale"


def _backend(call: Call) -> ModuleType:
    return import_module(_MODULES[select_backend(call.z.device, call.settings)])


def _call(
    z: Tensor,
    projection: Tensor,
    vectors: Tensor,
    groups: Tensor,
    target: Tensor | None,
    settings: tuple[Any, ...] = (),
) -> Call:
    """Bundle and check what every op is given; labels' values only where that costs no wait."""
    bundle = Settings(objective=settings[0], scale=settings[1]) if settings else Settings()
    check_projection(z, projection, vectors, groups, bundle)
    if target is not None:
        check_target(z, target)
        check_labels(target, groups.shape[1])
    return Call(z, projection, vectors, groups, target, bundle)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _forward(z, projection, vectors, groups):  # type: ignore[no-untyped-def]
    call = _call(z, projection, vectors, groups, None)
    if z.shape[0] == 0:
        return _no_scores(z, groups)
    return _backend(call).scores(call)


def _no_scores(z: Tensor, groups: Tensor) -> Tensor:
    """Scores (B, C) without values, which an empty batch has none of."""
    return z.new_empty(z.shape[0], groups.shape[1], dtype=_wide(z.dtype))


forward_op = torch.library.custom_op(
    "spela::projection_forward", _forward, mutates_args=(), schema=f"({_TENSORS}) -> Tensor"
)


@forward_op.register_fake
def _(z, projection, vectors, groups):  # type: ignore[no-untyped-def]
    _call(z, projection, vectors, groups, None)
    return _no_scores(z, groups)


def _loss(z, projection, vectors, groups, target, *settings):  # type: ignore[no-untyped-def]
    call = _call(z, projection, vectors, groups, target, settings)
    return tuple(_backend(call).forward(call))


loss_op = torch.library.custom_op(
    "spela::projection_loss",
    _loss,
    mutates_args=(),
    schema=f"({_TENSORS}, Tensor target, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor)",
)


@loss_op.register_fake
def _(z, projection, vectors, groups, target, *settings):  # type: ignore[no-untyped-def]
    bundle = _call(z, projection, vectors, groups, target, settings).settings
    rows, wide = z.shape[:2], _wide(z.dtype)
    compared = (vectors.shape[1],) if get_objective(bundle.objective).all_classes else ()
    return (
        z.new_empty((), dtype=wide),
        z.new_empty(*rows, projection.shape[2]),
        z.new_empty(*rows, dtype=wide),
        z.new_empty(*rows, *compared, dtype=wide),
    )


def _loss_backward(  # type: ignore[no-untyped-def]
    grad_loss, z, projection, vectors, groups, target, p, norm, cosine, *settings
):
    call = _call(z, projection, vectors, groups, target, settings)
    return tuple(
        _backend(call).backward(call, Forward(norm.new_empty(()), p, norm, cosine), grad_loss)
    )


loss_backward_op = torch.library.custom_op(
    "spela::projection_loss_backward",
    _loss_backward,
    mutates_args=(),
    schema=f"(Tensor? grad_loss, {_TENSORS}, Tensor target, Tensor p, Tensor norm, Tensor cosine, "
    f"{_SETTINGS}) -> (Tensor, Tensor)",
)


@loss_backward_op.register_fake
def _(grad_loss, z, projection, *unused):  # type: ignore[no-untyped-def]
    return z.new_empty(z.shape), projection.new_empty(projection.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, ctx.settings = inputs[:5], inputs[5:]
    ctx.backend = asked_backend()
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output[1:])


def _gradient(ctx: Any, grad_loss: Tensor, *unused: Tensor | None) -> tuple[Any, ...]:
    with use_backend(ctx.backend):
        gradients = loss_backward_op(grad_loss, *ctx.saved_tensors, *ctx.settings)
    # vectors, groups, target and the settings are fixed.
    return (*gradients, *(None,) * (3 + len(ctx.settings)))


loss_op.register_autograd(_gradient, setup_context=_save_for_backward)


def _step_fake(z, projection, vectors, groups, target, *rest):  # type: ignore[no-untyped-def]
    _call(z, projection, vectors, groups, target, rest[-2:])
    return z.new_empty((), dtype=_wide(z.dtype)), z.new_empty(z.shape)


def _sgd(  # type: ignore[no-untyped-def]
    z, projection, vectors, groups, target, momentum_buffer, lr, *rest
):
    call = _call(z, projection, vectors, groups, target, rest[-2:])
    rule = SgdRule(*rest[:-2])
    if rule.momentum != 0 or momentum_buffer is not None:
        check_state("momentum_buffer", momentum_buffer, projection)
    check_updated((projection, momentum_buffer), (z, vectors))
    return _backend(call).step_(call, Step(rule, lr, momentum_buffer, None))


sgd_op = torch.library.custom_op(
    "spela::projection_sgd_",
    _sgd,
    mutates_args=("projection", "momentum_buffer"),
    schema=f"({_UPDATED}, Tensor(b!)? momentum_buffer, Tensor lr, float momentum, "
    f"float weight_decay, bool nesterov, {_SETTINGS}) -> (Tensor, Tensor)",
)
sgd_op.register_fake(_step_fake)


def _adam(  # type: ignore[no-untyped-def]
    z, projection, vectors, groups, target, exp_avg, exp_avg_sq, step, lr, *rest
):
    call = _call(z, projection, vectors, groups, target, rest[-2:])
    check_state("exp_avg", exp_avg, projection)
    check_state("exp_avg_sq", exp_avg_sq, projection)
    check_updated((projection, exp_avg, exp_avg_sq), (z, vectors))
    return _backend(call).step_(call, Step(AdamRule(*rest[:-2]), lr, exp_avg, exp_avg_sq, step))


adam_op = torch.library.custom_op(
    "spela::projection_adam_",
    _adam,
    mutates_args=("projection", "exp_avg", "exp_avg_sq"),
    schema=f"({_UPDATED}, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor step, Tensor lr, "
    f"float beta1, float beta2, float eps, float weight_decay, {_SETTINGS}) -> (Tensor, Tensor)",
)
adam_op.register_fake(_step_fake)
