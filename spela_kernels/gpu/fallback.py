"""Where Triton kernels cannot take a call (float64, bf16 on Turing, no tile that fits) the reference does.

So it does where Triton itself cannot start, as on a machine without a C compiler, and on GPUs older
than those that tiles are known for. One warning says so.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from triton.runtime import driver
from triton.runtime.errors import OutOfResources

from spela_kernels.gpu.launching import architecture_of
from spela_kernels.rules import Step

__all__ = ["guarded", "on_device", "step_on_device", "warn_of_fallback"]

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_State = TypeVar("_State")


@functools.cache
def warn_of_fallback(reason: str) -> None:
    """Say once, of each reason, why the reference replaces the kernels."""
    _logger.warning("spela_kernels: the reference replaces the Triton kernels here: %s", reason)


def _supports(x: Tensor) -> bool:
    if x.dtype == torch.bfloat16:  # the interpreter's bf16 products are wrong
        return x.device.type != "cpu" and architecture_of(x.device).has_bf16
    return x.dtype in (torch.float32, torch.float16)


@functools.cache
def _start_refused() -> str:
    """Why Triton can launch nothing here, whose launcher the machine's C compiler builds; empty: it can."""
    try:
        driver.active.get_current_target()
    except Exception as error:  # each lack (compiler, Python.h, libcuda) raises a kind of its own
        said = " ".join(str(error).split())
        return f"Triton cannot start ({type(error).__name__}: {said[:300]})"
    return ""


@functools.cache
def _too_old(device: torch.device) -> str:
    """Why no tiles can be chosen for a GPU; empty: they can."""
    try:
        architecture_of(device)
    except ValueError as error:
        return str(error)
    return ""


def on_device(x: Tensor, scalar: Tensor | None) -> Tensor | None:
    """The 0-d tensor where a kernel beside `x` can read it; one already there is not copied."""
    return None if scalar is None else scalar.to(x.device)


def step_on_device(x: Tensor, step: Step[_State]) -> Step[_State]:
    """The step with its two scalars where a kernel beside `x` can read them."""
    return step._replace(lr=step.lr.to(x.device), number=on_device(x, step.number))


def guarded(run: Callable[[], _Result], fallback: Callable[[], _Result], x: Tensor) -> _Result:
    """`run()` on the tensors' device, or the reference where the kernels cannot take the call.

    Args:
        run: Launches the kernels.
        fallback: Runs the reference.
        x: The op's input: its device and dtype decide.

    Returns:
        What either returns.
    """
    if x.device.type == "cuda" and (refused := _start_refused() or _too_old(x.device)):
        warn_of_fallback(refused)
        return fallback()
    if not _supports(x):
        warn_of_fallback(f"no kernels for {x.dtype} on {x.device.type}")
        return fallback()
    on_its_device: AbstractContextManager[Any] = (
        torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()
    )
    try:
        with on_its_device:
            return run()
    except OutOfResources as error:  # raised before a launch: nothing is half updated
        warn_of_fallback(str(error))
        return fallback()
