"""Times of several functions that take turns, so that a slow moment of the machine meets them all."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping

import torch

__all__ = ["interleaved_medians"]

# On a GPU a turn lasts about as long, or as many calls, so that waiting for its end counts for little.
_TURN_SECONDS = 2e-3
_MOST_CALLS = 50


def interleaved_medians(
    steps: Mapping[str, Callable[[], object]],
    budget: float,
    least: int = 5,
    device: torch.device | str = "cpu",
    turn: int = 1,
) -> dict[str, float]:
    """Median seconds of every function; each round runs all, in an order drawn anew.

    Interleaving keeps one from having the caches to itself, and the drawn order from always following the
    same other one, whose caches and freed memory it would inherit. On a GPU, where calls return before
    their work is done, a turn is several calls and the clock waits for the last.

    Args:
        steps: What to time, by name; each is called twice first, which compiles what it compiles.
        budget: Seconds for the timed rounds together.
        least: Rounds that run whatever the budget says.
        device: Where the functions compute.
        turn: Calls of one function before the next, on the CPU: several show it as a user runs it, with the
            caches to itself; one, as it runs among other work.

    Returns:
        Seconds of one call, by name.

    Example:
        >>> sorted(interleaved_medians({"a": lambda: None, "b": lambda: None}, 0.01))
        ['a', 'b']
    """
    on_gpu = torch.device(device).type == "cuda"

    def timed(step: Callable[[], object], calls: int) -> float:
        if on_gpu:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / calls

    calls = dict.fromkeys(steps, turn)
    for name, step in steps.items():
        step()
        once = timed(step, 1)
        if on_gpu:
            calls[name] = max(1, min(_MOST_CALLS, round(_TURN_SECONDS / once)))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + budget
    rounds, order, shuffle = 0, list(steps), random.Random(0).shuffle
    while rounds < least or time.perf_counter() < end:
        shuffle(order)
        for name in order:
            seconds[name].append(timed(steps[name], calls[name]))
        rounds += 1
    return {name: statistics.median(times) for name, times in seconds.items()}
