"""The optimizers' update rules, for every back-end: their constants, their state, and the update in torch.

A `Step` travels from the ops to the kernels, once `check_*` found that it can be taken; `update_` is the
reference's arithmetic, `fused_update_` the same in as few passes over memory as torch has operators for.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from spela_kernels.precision import may_be_read

__all__ = [
    "AdamRule",
    "SgdRule",
    "Step",
    "check_adam",
    "check_state",
    "check_updated",
    "fused_update_",
    "rates_of",
    "update_",
]


class SgdRule(NamedTuple):
    """torch.optim.SGD with dampening 0."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False


class AdamRule(NamedTuple):
    """torch.optim.Adam: weight decay is added to the gradient."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0


def rates_of(rule: SgdRule | AdamRule, lr: float, number: float) -> tuple[float, float]:
    """A step's rate and the spread of Adam's second moments.

    Args:
        rule: Of the layer.
        lr: As float32 has it.
        number: Of the step, counted from 1.

    Example:
        >>> rates_of(SgdRule(), 0.5, 1)
        (0.5, 0.0)
    """
    if isinstance(rule, SgdRule):
        return lr, 0.0
    return lr / (1 - rule.beta1**number), (1 - rule.beta2**number) ** -0.5


_Buffers = TypeVar("_Buffers")


class Step(NamedTuple, Generic[_Buffers]):
    """One update: a rule, its learning rate, and the optimizer's buffers of what is updated.

    A buffer is a tensor shaped like the one parameter, or a tuple of such for several of them.
    """

    rule: SgdRule | AdamRule
    lr: Tensor  # ()
    first: _Buffers  # SGD's momentum (None: plain) or Adam's first moments
    second: _Buffers  # Adam's second moments; None for SGD
    number: Tensor | None = None  # () of this step, counted from 1; for Adam


def check_state(name: str, state: Tensor | None, parameter: Tensor | None) -> None:
    """Check an optimizer buffer against its parameter: each has one.

    Args:
        name: The argument's name, for the message.
        state: Buffer or None.
        parameter: The parameter the buffer belongs to, or None.

    Raises:
        ValueError: If shapes or devices differ, or one of the two is missing.
        TypeError: If the buffer is not floating point.
    """
    if parameter is None:
        if state is not None:
            raise ValueError(f"`{name}` is given but its parameter is None")
        return
    if state is None:
        raise ValueError(f"`{name}` is None but its parameter is given: pass zeros of its shape")
    if not state.is_floating_point():
        raise TypeError(f"`{name}` must be floating point, got {state.dtype}")
    if state.shape != parameter.shape or state.device != parameter.device:
        raise ValueError(
            f"`{name}` must be {tuple(parameter.shape)} on {parameter.device}, got "
            f"{tuple(state.shape)} on {state.device}"
        )


def check_adam(step: float | Tensor, betas: tuple[float, float]) -> None:
    """Check Adam's count and decays, which it divides by; a count in a GPU's tensor is not looked into.

    Raises:
        ValueError: If the count is less than 1 or a decay not in [0, 1).

    Example:
        >>> check_adam(1, (0.9, 0.999))
    """
    if (not isinstance(step, Tensor) or may_be_read(step)) and not step >= 1:
        raise ValueError(f"`step` counts from 1, got {float(step):g}")
    if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
        raise ValueError(f"`betas` must lie in [0, 1), got {betas}")


def check_updated(updated: tuple[Tensor | None, ...], read: tuple[Tensor, ...]) -> None:
    """Check that an update in place writes every number once, and none that it still reads.

    Args:
        updated: What is stepped: parameters and optimizer buffers, or None.
        read: What is read besides.

    Raises:
        ValueError: If numbers of a tensor to update are one in memory, or it begins where another argument
            does. (That they overlap further on, as slices of one buffer may, is not looked for.)

    Example:
        >>> weight = torch.ones(2, 2)
        >>> check_updated((weight, None), (weight.clone(),))
    """
    written = [tensor.data_ptr() for tensor in updated if tensor is not None]
    places = {tensor.data_ptr() for tensor in read}
    if len(places.union(written)) < len(places) + len(written):
        held = [place for place in written if place != 0]  # 0: empty, or without memory
        if len(set(held)) < len(held) or not places.isdisjoint(held):
            raise ValueError(
                "a tensor to update is also another argument of the step: pass a clone() of it"
            )
    for tensor in updated:
        if tensor is None or tensor.is_contiguous():
            continue
        reach = 0  # of the axes that lie closer together
        for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
            if size > 1 and stride <= reach:
                raise ValueError(
                    f"several numbers of a tensor to update, of shape {tuple(tensor.shape)} and strides "
                    f"{tensor.stride()}, are one in memory: pass a clone() of it"
                )
            reach += (size - 1) * stride


def update_(parameter: Tensor, gradient: Tensor, step: Step[Tensor | None]) -> None:
    """One step of torch.optim's SGD or Adam, in place.

    Args:
        parameter: Any shape, updated.
        gradient: Shaped like it.
        step: Rule, learning rate and buffers, which are updated.

    Source: torch.optim.SGD, torch.optim.Adam.

    Example:
        >>> parameter = torch.tensor([1.0])
        >>> update_(parameter, torch.tensor([2.0]), Step(SgdRule(), torch.tensor(0.25), None, None))
        >>> parameter
        tensor([0.5000])
    """
    rule, lr, first, second, number = step
    if rule.weight_decay != 0:
        gradient = gradient + rule.weight_decay * parameter
    if isinstance(rule, SgdRule):
        if first is not None:
            first.mul_(rule.momentum).add_(gradient)
            gradient = gradient + rule.momentum * first if rule.nesterov else first
        parameter.sub_(lr * gradient)
        return
    assert first is not None
    assert second is not None
    assert number is not None
    exact = number.double()  # 0-d: widens nothing, and keeps float64 steps exact
    correction1, correction2 = 1 - rule.beta1**exact, 1 - rule.beta2**exact
    first.mul_(rule.beta1).add_(gradient, alpha=1 - rule.beta1)
    second.mul_(rule.beta2).addcmul_(gradient, gradient, value=1 - rule.beta2)
    denominator = (second / correction2).sqrt_().add_(rule.eps)
    parameter.sub_(((lr / correction1) * first).div_(denominator))


def fused_update_(parameter: Tensor, gradient: Tensor, step: Step[Tensor | None]) -> None:
    """`update_` in one operator: plain SGD, and Adam by torch's fused kernel, on GPUs too.

    Args:
        parameter, gradient, step: As in `update_`, which runs for other rules, where dtypes or strides differ
            (torch's kernel walks the four tensors side by side), on the meta device, or for float64 on GPUs.

    Example:
        >>> parameter, first, second = torch.ones(1), torch.zeros(1), torch.zeros(1)
        >>> step = Step(AdamRule(), torch.tensor(0.25), first, second, torch.tensor(1.0))
        >>> fused_update_(parameter, torch.tensor([2.0]), step)
        >>> parameter
        tensor([0.7500])
    """
    rule, lr, first, second, number = step
    if rule == _PLAIN and first is None and not lr.is_meta:
        parameter.add_(gradient, alpha=-float(lr))
    # On a GPU torch's kernel reads a rate of float32 alone.
    elif (
        isinstance(rule, AdamRule)
        and (lr.is_cpu or lr.dtype == torch.float32)
        and _alike(parameter, gradient, first, second)
    ):
        assert first is not None
        assert second is not None
        assert number is not None
        # What torch.optim.Adam(fused=True) calls; torch's function around it takes longer than a small layer.
        torch._fused_adam_(
            [parameter],
            [gradient],
            [first],
            [second],
            [],
            [number.float()],
            lr=lr,
            beta1=rule.beta1,
            beta2=rule.beta2,
            weight_decay=rule.weight_decay,
            eps=rule.eps,
            amsgrad=False,
            maximize=False,
        )
    else:
        update_(parameter, gradient, step)


_PLAIN = SgdRule()


def _alike(parameter: Tensor, *others: Tensor | None) -> bool:
    """Whether the tensors lie side by side in memory: one dtype, one set of strides."""
    dtype, strides = parameter.dtype, parameter.stride()
    return not parameter.is_meta and all(
        t is not None and t.dtype == dtype and t.stride() == strides for t in others
    )
