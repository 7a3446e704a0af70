# mypy: ignore-errors
"""The optimizers' arithmetic at the end of every update kernel, and sums in a fixed order."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from spela_kernels.gpu.formulas import expm1
from spela_kernels.rules import AdamRule, SgdRule

__all__ = ["apply_step", "ordered_sum", "step_arguments"]


def step_arguments(rule: SgdRule | AdamRule | None) -> tuple[object, ...]:
    """The constexprs of `apply_step` for a rule, and then its numbers; None stores the gradient.

    A schedule may move the numbers at every step, so they are arguments: constexprs would be compiled anew.
    """
    kind, sgd, adam = "gradient", SgdRule(), AdamRule(0.0, 0.0, 0.0)
    if isinstance(rule, SgdRule):
        kind, sgd = "sgd", rule
    elif rule is not None:
        kind, adam = "adam", rule
        sgd = SgdRule(weight_decay=rule.weight_decay)
    betas = (float(adam.beta1), float(adam.beta2))
    # 1 - beta and log(beta), because 1 - beta and 1 - beta^step cancel in fp32
    rest = (1 - beta for beta in betas)
    logs = (math.log(max(beta, 1e-30)) for beta in betas)
    decay = float(sgd.weight_decay)
    return (
        kind, sgd.nesterov, decay != 0,
        float(sgd.momentum), decay, *betas, *rest, *logs, float(adam.eps),
    )  # fmt: skip


@triton.jit
def apply_step(
    gradient, parameter_ptr, offs, first_ptr, second_ptr, offs_state, mask, lr, step,
    RULE: tl.constexpr, NESTEROV: tl.constexpr, DECAYS: tl.constexpr,
    momentum, weight_decay, beta1, beta2, rest1, rest2, log_beta1, log_beta2, adam_eps,
):  # fmt: skip
    """Store a gradient, or take torch.optim's SGD or Adam step on what it belongs to, in fp32."""
    if RULE != "gradient":
        value = tl.load(parameter_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        if DECAYS:
            gradient += weight_decay * value
        if RULE == "sgd":
            if first_ptr is not None:
                first = tl.load(first_ptr + offs_state, mask=mask, other=0.0).to(tl.float32)
                first = momentum * first + gradient
                tl.store(first_ptr + offs_state, first.to(first_ptr.dtype.element_ty), mask=mask)
                gradient = gradient + momentum * first if NESTEROV else first
            value -= lr * gradient
        else:
            first = tl.load(first_ptr + offs_state, mask=mask, other=0.0).to(tl.float32)
            second = tl.load(second_ptr + offs_state, mask=mask, other=0.0).to(tl.float32)
            first = beta1 * first + rest1 * gradient
            second = beta2 * second + rest2 * gradient * gradient
            tl.store(first_ptr + offs_state, first.to(first_ptr.dtype.element_ty), mask=mask)
            tl.store(second_ptr + offs_state, second.to(second_ptr.dtype.element_ty), mask=mask)
            # 1 - beta^step, without cancellation at small steps
            correction1, correction2 = -expm1(step * log_beta1), -expm1(step * log_beta2)
            value -= (lr / correction1) * first / (tl.sqrt(second / correction2) + adam_eps)
        gradient = value
    tl.store(parameter_ptr + offs, gradient.to(parameter_ptr.dtype.element_ty), mask=mask)


@triton.jit
def ordered_sum(values_ptr, count, BLOCK: tl.constexpr):
    """Sum of `count` floats, in the same order every time."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        total += tl.load(values_ptr + offs, mask=offs < count, other=0.0)
    return tl.sum(total)
