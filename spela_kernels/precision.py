"""torch's modes in the ops and layers: autocast, no_grad and inference_mode.

Under autocast the layer input is cast, and with it the products; parameters, losses and state keep their
dtype. The decorators enter a mode only where it is not the current one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._device import DeviceContext

__all__ = [
    "autocast_input",
    "autocast_is_on",
    "made_in_inference",
    "may_be_read",
    "recordable",
    "refuse_forward_mode",
    "runs_as_written",
    "without_autocast",
    "without_grad",
    "without_inference",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_PLAIN = (Tensor, torch.nn.Parameter)


def autocast_is_on(device_type: str) -> bool:
    """Whether autocast is on for a kind of device; of meta tensors torch would raise.

    Example:
        >>> autocast_is_on("meta")
        False
    """
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def _function_modes_only_place() -> bool:
    """Whether no mode sees torch's functions but such as say where new tensors go."""
    if torch._C._len_torch_function_stack() == 0:
        return True
    modes = torch.overrides._get_current_function_mode_stack()
    return all(isinstance(mode, DeviceContext) for mode in modes)


def runs_as_written(*tensors: Tensor) -> bool:
    """Whether a pass that reads memory by address may stand for torch's operators on these tensors.

    Not where torch would record or replace the operators: under torch.compile, export, tracing, functorch's
    transforms, forward-mode derivatives and dispatch modes, for tensor subclasses and tensors whose signs are
    yet to be turned, or under autocast.

    Args:
        *tensors: On the CPU, or the answer is no.

    Example:
        >>> runs_as_written(torch.ones(2)), runs_as_written(torch.ones(2, device="meta"))
        (True, False)
    """
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and _function_modes_only_place()
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch._C._get_tracing_state()
        and torch.autograd.forward_ad._current_level < 0
        and all(type(t) in _PLAIN and t.device.type == "cpu" and not t.is_neg() for t in tensors)
        and not torch.is_autocast_enabled("cpu")
    )


def refuse_forward_mode(what: str) -> None:
    """Refuse forward-mode derivatives, which torch's custom ops drop without a word.

    Args:
        what: The function that has none.

    Raises:
        NotImplementedError: Inside `torch.func.jvp`, `jacfwd` or `torch.autograd.forward_ad.dual_level`.

    Example:
        >>> torch.func.jvp(lambda x: refuse_forward_mode("f") or x, (torch.ones(1),), (torch.ones(1),))
        Traceback (most recent call last):
        ...
        NotImplementedError: f has no forward-mode derivative: use backward() or torch.autograd.grad
    """
    if not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0:
        raise NotImplementedError(
            f"{what} has no forward-mode derivative: use backward() or torch.autograd.grad"
        )


def may_be_read(tensor: Tensor) -> bool:
    """Whether Python may look at a tensor's value: on the CPU, while nothing records operators.

    Example:
        >>> may_be_read(torch.ones(())), may_be_read(torch.ones((), device="meta"))
        (True, False)
    """
    return (
        type(tensor) is Tensor
        and tensor.is_cpu
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def autocast_input(x: Tensor) -> Tensor:
    """A layer's input in autocast's dtype where autocast is on.

    Every op runs its products in the dtype of its input, so this one cast is all that autocast changes:
    gradients reach float32 parameters in float32, and a fused step updates them in float32.

    Args:
        x: Any tensor; float64 is left alone, as torch's autocast does, and so is what holds no floats.

    Returns:
        `x`, cast or as it is.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     autocast_input(torch.ones(1)).dtype
        torch.bfloat16
    """
    device = x.device.type
    if x.dtype == torch.float64 or not x.is_floating_point() or not autocast_is_on(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def without_autocast(function: _Function) -> _Function:
    """Decorator: autocast is off inside, so that torch's products there keep the dtypes they are given.

    Args:
        function: Takes a call of an op first, a tuple that begins with the layer input.

    Returns:
        The same function; nothing is entered where autocast is off.
    """

    @functools.wraps(function)
    def wrapped(call: tuple[Any, ...], *args: Any, **kwargs: Any) -> Any:
        device = call[0].device.type
        if not autocast_is_on(device):
            return function(call, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(call, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


def without_grad(function: _Function) -> _Function:
    """Decorator: as torch.no_grad; nothing is entered where gradients are off, as in a network's step.

    Args:
        function: Any function.

    Returns:
        The same function.

    Example:
        >>> without_grad(torch.is_grad_enabled)()
        False
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        with torch.no_grad():
            return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def made_in_inference(tensor: Tensor) -> bool:
    """Whether a tensor was made under `torch.inference_mode`; torch.compile cannot ask, and sees none.

    Example:
        >>> made_in_inference(torch.ones(1))
        False
    """
    return not torch.compiler.is_compiling() and tensor.is_inference()


def recordable(tensor: Tensor) -> Tensor:
    """A copy of a tensor that inference mode made, which autograd cannot save; others as they are.

    Features of a frozen network are such tensors. Under inference mode itself nothing is saved or copied.

    Example:
        >>> with torch.inference_mode():
        ...     features = torch.ones(1)
        >>> features.is_inference(), recordable(features).is_inference()
        (True, False)
    """
    if made_in_inference(tensor) and not torch.is_inference_mode_enabled():
        return tensor.clone()
    return tensor


def without_inference(function: _Function) -> _Function:
    """Decorator: `torch.inference_mode` is off inside, since what it makes could never be updated outside.

    For what builds layers or lets them learn. torch.compile cannot ask for the mode, and traces as outside.

    Args:
        function: Any function.

    Returns:
        The same function.

    Example:
        >>> with torch.inference_mode():
        ...     torch.ones(1).is_inference(), without_inference(torch.ones)(1).is_inference()
        (True, False)
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False):
            return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]
