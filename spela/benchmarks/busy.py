"""Steps on a busy machine: beside processes that compute without end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from spela.benchmarks.network import NetworkCase
from spela.process import threads_used

__all__ = ["BUSY_CASES", "BUSY_VARIANTS", "busy_processes", "on_one_thread"]

BUSY_CASES = (NetworkCase((64, 100, 100), 200), NetworkCase((784, 1024, 1024, 1024), 50))
BUSY_VARIANTS = ("spela", "autograd_spela", "backprop")


@contextmanager
def busy_processes(count: int) -> Iterator[list[int]]:
    """A block beside processes that each keep a core busy; yields their pids.

    Args:
        count: How many; 0: an idle machine stays idle.

    Example:
        >>> with busy_processes(1) as pids:
        ...     len(pids)
        1
    """
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield [process.pid for process in others]
    finally:
        for process in others:
            process.kill()
        for process in others:
            process.wait()


def on_one_thread(step: Callable[[], object]) -> Callable[[], None]:
    """The step on one of torch's threads; their number is put back behind it.

    Args:
        step: Any function.

    Example:
        >>> import torch
        >>> on_one_thread(lambda: print(torch.get_num_threads()))()
        1
    """

    def alone() -> None:
        with threads_used(1):
            step()

    return alone
