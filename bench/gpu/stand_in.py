"""torch.cuda without a GPU, for the dry run: clocks tick, graphs capture, memory is empty; the CPU computes.

The parts then run the very lines that they run on a GPU. Only what they use is here, under torch's names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from spela_kernels.cost.roofline import GPUS

__all__ = ["PRETENDED", "cuda_on_the_cpu"]

PRETENDED = "H100"  # the card whose published figures the dry run compares with


class _Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end_event: _Event) -> float:
        return 1e3 * (end_event.at - self.at) + 1e-6  # never 0: it is divided by


class _Stream:
    def wait_stream(self, stream: _Stream) -> None:
        return None


class _Graph:
    """Captures nothing: what the `with` block runs has run."""

    def replay(self) -> None:
        return None


def _properties(device: Any = None) -> SimpleNamespace:
    arch = GPUS[PRETENDED].arch
    return SimpleNamespace(
        name=PRETENDED,
        major=9,
        minor=0,
        multi_processor_count=arch.multiprocessors,
        total_memory=0,
        L2_cache_size=GPUS[PRETENDED].cache_bytes,
    )


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Event": _Event,
    "Stream": _Stream,
    "CUDAGraph": _Graph,
    "device": lambda device: nullcontext(),
    "graph": lambda cuda_graph, **settings: nullcontext(),
    "stream": lambda stream: nullcontext(),
    "current_stream": lambda device=None: _Stream(),
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
    "memory_allocated": lambda device=None: 0,
    "max_memory_allocated": lambda device=None: 1,
    "reset_peak_memory_stats": lambda device=None: None,
    "get_device_name": lambda device=None: PRETENDED,
    "get_device_properties": _properties,
}


@contextmanager
def cuda_on_the_cpu() -> Iterator[None]:
    """Within the block torch.cuda's meters work without a GPU; tensors stay where they are."""
    with ExitStack() as stack:
        for name, value in _FUNCTIONS.items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        # A compiler of C++ would take longer than all the rest.
        stack.enter_context(patch.object(torch, "compile", lambda model, **settings: model))
        yield
