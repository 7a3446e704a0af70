"""Which back-ends exist and which one runs: by device, SPELA_BACKEND or `use_backend`.

Each op package (`linear`, ...) holds one module per back-end with the same functions; `select_backend`
returns the name of the module to call. `auto` takes the fastest available one for the tensor's device that
can run the layer's objective and activation; one asked for by name refuses what it has no kernel for.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec

import torch

from spela_kernels.contracts import Settings, without_kernels
from spela_kernels.environment import choice_of

__all__ = [
    "BACKENDS",
    "asked_backend",
    "available_backends",
    "named_backend",
    "select_backend",
    "use_backend",
]

# Fastest first; `reference` runs everywhere and is what the others are judged by.
BACKENDS: tuple[str, ...] = ("triton", "cpu", "reference")

_requested: ContextVar[str | None] = ContextVar("spela_backend", default=None)


def available_backends(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """List the back-ends that can run on a device here, fastest first.

    Args:
        device: A torch device.

    Returns:
        Back-end names; `reference` is always the last.

    Example:
        >>> available_backends("cpu")[-1]
        'reference'
    """
    return _runnable(device.type if isinstance(device, torch.device) else torch.device(device).type)


@functools.cache
def _runnable(kind: str) -> tuple[str, ...]:
    # TRITON_INTERPRET=1, set before triton is imported, runs its kernels on CPU tensors: for tests.
    interprets = kind == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    runs = {
        "triton": (kind == "cuda" or interprets) and find_spec("triton") is not None,
        "cpu": kind == "cpu",
        "reference": True,
    }
    return tuple(name for name in BACKENDS if runs[name])


@functools.cache
def named_backend() -> str:
    """What SPELA_BACKEND says: looked up once, because a lookup would slow a small layer's step.

    Raises:
        ValueError: If it is neither auto nor one of `BACKENDS`.
    """
    return choice_of("SPELA_BACKEND", BACKENDS, "back-end")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops called inside the `with` block (in this thread or task) on one back-end.

    Args:
        name: `reference`, another of `available_backends()`, or `auto`. Overrides SPELA_BACKEND.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> with use_backend("reference"):
        ...     select_backend(torch.device("cpu"))
        'reference'
    """
    if name != "auto" and name not in BACKENDS:
        known = ", ".join(("auto", *BACKENDS))
        raise ValueError(f"unknown back-end {name!r}: use one of {known}")
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def asked_backend() -> str:
    """What `use_backend`, or else SPELA_BACKEND, asks for here: a name from `BACKENDS`, or auto.

    Autograd calls backwards of a GPU in threads of its own, to which a `with` block does not reach.
    """
    return _requested.get() or named_backend()


def select_backend(device: torch.device, settings: Settings | None = None) -> str:
    """Name the back-end that runs the ops on `device`.

    Args:
        device: The device of the op's tensors.
        settings: The layer's objective and activation; None: rows of the tables that every kernel has.

    Returns:
        A name from `BACKENDS`. A name asked for is never replaced by another.

    Raises:
        ValueError: If SPELA_BACKEND is unknown, or the requested back-end cannot run on `device` or has no
            kernel for the settings.
    """
    asked = asked_backend()
    available = _runnable(device.type)
    name = available[0] if asked == "auto" else asked
    if name not in available:
        raise ValueError(
            f"back-end {name!r} cannot run on device {str(device)!r}: use one of "
            f"{', '.join(available)}, or move the tensors"
        )
    # The others call the rows' own functions where they have nothing faster.
    if name == "triton" and settings is not None and (missing := without_kernels(settings)):
        if asked == "auto":
            return available[1]
        raise ValueError(
            f"back-end 'triton' has no kernel for {missing}: use 'auto' or {available[1]!r}"
        )
    return name
