"""Times of several functions that take turns, so that a slow moment of the machine meets them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

__all__ = ["interleaved_medians"]


def interleaved_medians(
    steps: Mapping[str, Callable[[], object]], budget: float, least: int = 5
) -> dict[str, float]:
    """Median seconds of every function; they run one after the other, round by round.

    Interleaving also keeps one from having the caches to itself. On a GPU the clock waits for it.

    Args:
        steps: What to time, by name; each is called twice first, which compiles what it compiles.
        budget: Seconds for the timed rounds together.
        least: Rounds that run whatever the budget says.

    Returns:
        Seconds of one call, by name.

    Example:
        >>> sorted(interleaved_medians({"a": lambda: None, "b": lambda: None}, 0.01))
        ['a', 'b']
    """
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for step in steps.values():
        step()
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + budget
    rounds = 0
    while rounds < least or time.perf_counter() < end:
        for name, step in steps.items():
            wait()
            start = time.perf_counter()
            step()
            wait()
            seconds[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: statistics.median(times) for name, times in seconds.items()}
