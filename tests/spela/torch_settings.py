"""Process-wide settings of torch and Python, as blocks that put them back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch


@contextmanager
def _set(setting: Callable[[Any], object], value: Any, before: Any) -> Iterator[None]:
    setting(value)
    try:
        yield
    finally:
        setting(before)


def default_dtype(dtype: torch.dtype) -> AbstractContextManager[None]:
    """A block under another default dtype."""
    return _set(torch.set_default_dtype, dtype, torch.float32)


def default_device(device: str) -> AbstractContextManager[None]:
    """A block under another default device."""
    return _set(torch.set_default_device, device, None)


def gradients_off() -> AbstractContextManager[None]:
    """A block with gradients off as `torch.set_grad_enabled` leaves them: no mode that ends itself."""
    return _set(torch.set_grad_enabled, False, True)


def deterministic_algorithms() -> AbstractContextManager[None]:
    """A block that asks for deterministic algorithms, and so for uninitialised memory filled with NaN."""
    return _set(torch.use_deterministic_algorithms, True, False)


@contextmanager
def warnings_are_errors() -> Iterator[None]:
    """A block in which a warning is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
