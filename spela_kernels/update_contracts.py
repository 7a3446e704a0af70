"""Argument checks of the updates in place, shared by every back-end: buffers, counts, memory."""

from __future__ import annotations

from torch import Tensor

__all__ = ["check_adam", "check_state", "check_updated"]


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
    """Check Adam's count and decays, which it divides by; a count in a tensor is not looked into.

    Raises:
        ValueError: If the count is less than 1 or a decay not in [0, 1).

    Example:
        >>> check_adam(1, (0.9, 0.999))
    """
    if not isinstance(step, Tensor) and not step >= 1:
        raise ValueError(f"`step` counts from 1, got {step}")
    if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
        raise ValueError(f"`betas` must lie in [0, 1), got {betas}")


def check_updated(updated: tuple[Tensor | None, ...], read: tuple[Tensor, ...]) -> None:
    """Check that an update in place writes every number once, and none that it still reads.

    Args:
        updated: What is stepped: parameters and optimizer buffers, or None.
        read: What is read besides.

    Raises:
        ValueError: If numbers of a tensor to update are one in memory, or it is also another argument.

    Example:
        >>> import torch
        >>> weight = torch.ones(2, 2)
        >>> check_updated((weight, None), (weight.clone(),))
    """
    places = [tensor.data_ptr() for tensor in (*updated, *read) if tensor is not None]
    if len(set(places)) < len(places):
        held = [place for place in places if place != 0]  # 0: empty, or without memory
        if len(set(held)) < len(held):
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
