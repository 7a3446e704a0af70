"""Clocks and memory meters of a GPU: CUDA events, peak allocation, and a step as a CUDA graph."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from spela_kernels.gpu.graphs import capture

__all__ = ["measure_memory", "measure_us", "replayed"]


def measure_memory(step: Callable[[], object]) -> int:
    """Peak bytes that a warm step allocates on the current GPU above what it started with."""
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_us(step: Callable[[], object], warmup: int = 20, repeats: int = 100) -> float:
    """Median time of a step on the current GPU's stream, by CUDA events.

    Args:
        step: Called without arguments.
        warmup: Calls before the clock starts; compilation falls into them.
        repeats: Timed calls, each between two events of its own.

    Returns:
        Microseconds, of the CPU where it issues more slowly than the GPU works.
    """
    for _ in range(warmup):
        step()
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repeats)
    ]
    torch.cuda.synchronize()
    for start, end in events:
        start.record()
        step()
        end.record()
    torch.cuda.synchronize()
    return 1e3 * statistics.median(start.elapsed_time(end) for start, end in events)


def replayed(step: Callable[[], object]) -> Callable[[], None]:
    """A step as a CUDA graph, warmed up on a side stream: what remains without the CPU's share.

    Args:
        step: Called without arguments; allocates from the graph's pool, and must not wait for the GPU.

    Returns:
        The graph's replay, which repeats the launches on the same tensors.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    return capture(step, stream=side)[0]
