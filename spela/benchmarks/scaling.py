"""How a step's time grows with batch, width, depth, classes and threads: times and fitted exponents."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch

from spela.benchmarks.clock import interleaved_medians
from spela.benchmarks.network import VARIANTS, NetworkCase, floor_step
from spela.process import threads_used

__all__ = ["AXES", "fitted_exponent", "measure_axis"]

_WIDTH, _BATCH = 1024, 128
# What grows, the sizes it takes, and the case at each.
AXES: dict[str, tuple[tuple[int, ...], Callable[[int], NetworkCase]]] = {
    "batch": ((32, 64, 128, 256, 512), lambda n: NetworkCase((_WIDTH, _WIDTH), n)),
    "width": ((256, 512, 1024, 2048), lambda n: NetworkCase((n, n), _BATCH)),
    "depth": ((1, 2, 4, 8), lambda n: NetworkCase((_WIDTH,) * (n + 1), _BATCH)),
    "classes": ((10, 30, 100, 300, 1000), lambda n: NetworkCase((_WIDTH, _WIDTH), _BATCH, n)),
    "softmax classes": (
        (10, 30, 100, 300),
        lambda n: NetworkCase((_WIDTH, _WIDTH), _BATCH, n, objective="softmax"),
    ),
    "threads": ((1, 2), lambda n: NetworkCase((_WIDTH, _WIDTH), _BATCH)),
}


def fitted_exponent(sizes: Iterable[int], seconds: Iterable[float]) -> float:
    """The p of seconds ~ size^p, by least squares on logarithms.

    Example:
        >>> round(fitted_exponent([1, 2, 4], [3.0, 6.0, 12.0]), 6)
        1.0
    """
    return float(np.polyfit(np.log(list(sizes)), np.log(list(seconds)), 1)[0])


def measure_axis(axis: str, budget: float, device: str = "cpu") -> list[tuple[int, float, float]]:
    """Times of our SGD step and of its products alone, along one axis.

    Args:
        axis: A key of `AXES`.
        budget: Seconds for each size.
        device: Where the steps run.

    Returns:
        (size, seconds of the step, seconds of the floor), one a size.
    """
    sizes, make = AXES[axis]
    found = []
    for size in sizes:
        with threads_used(size if axis == "threads" else torch.get_num_threads()):
            case = replace(make(size), device=device)
            steps = {"spela": VARIANTS["spela"](case), "floor": floor_step(case)}
            times = interleaved_medians(steps, budget, device=device)
        found.append((size, times["spela"], times["floor"]))
    return found
