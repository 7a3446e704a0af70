"""Times of several functions that take turns, so that a slow moment of the machine meets them all."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping

import torch

__all__ = ["interleaved_medians"]


def interleaved_medians(
    steps: Mapping[str, Callable[[], object]], budget: float, least: int = 5
) -> dict[str, float]:
    """Median seconds of every function; each round runs all, in an order drawn anew.

    Interleaving keeps one from having the caches to itself, and the drawn order from always following the
    same other one, whose caches and freed memory it would inherit. On a GPU the clock waits for it.

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
    rounds, order, shuffle = 0, list(steps), random.Random(0).shuffle
    while rounds < least or time.perf_counter() < end:
        shuffle(order)
        for name in order:
            step = steps[name]
            wait()
            start = time.perf_counter()
            step()
            wait()
            seconds[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: statistics.median(times) for name, times in seconds.items()}
