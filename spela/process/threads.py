"""Threads that leave a busy machine to others: waiting ones sleep, and there are no more than may run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["calm_threads", "limit_threads", "threads_used"]

# What decides how long a thread that waits for others spins before it sleeps.
_SPIN, _POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
_SPINS = "2000"  # some microseconds
_CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def calm_threads() -> bool:
    """Let threads that wait for each other sleep after some microseconds, instead of milliseconds.

    Between the products of a step, torch's threads wait for each other; while they spin, they take a core
    from whoever has work: on a busy machine from the very thread that they wait for. The command line calls
    this; a program calls it before it imports torch, or sets the variable GOMP_SPINCOUNT to 2000 itself. What
    GOMP_SPINCOUNT or OMP_WAIT_POLICY says already stays.

    Returns:
        Whether it takes effect: False once torch has been imported, as its OpenMP library has read the
        variables then. Its wheels for Linux bring GNU's; others do not read this one.

    Source: the manual of GNU libgomp.

    Example:
        >>> import torch
        >>> calm_threads()  # too late
        False
    """
    if _SPIN not in os.environ and _POLICY not in os.environ:
        os.environ[_SPIN] = _SPINS
    return "torch" not in sys.modules


def limit_threads() -> int:
    """Use no more threads than the process may run at a time, where nobody has chosen their number.

    Torch starts a thread a core of the machine; a container's quota may be less, and threads beyond it are
    stopped in turn. OMP_NUM_THREADS and MKL_NUM_THREADS are choices.

    Returns:
        The number of threads that torch uses from here on.

    Source: the Linux kernel's documentation of control groups, as a container sees its own.

    Example:
        >>> limit_threads() >= 1
        True
    """
    import torch

    quota = _quota()
    if quota is not None and not any(os.environ.get(name) for name in _CHOSEN):
        allowed = max(1, round(quota))
        if allowed < torch.get_num_threads():
            torch.set_num_threads(allowed)
    return torch.get_num_threads()


@contextmanager
def threads_used(count: int) -> Iterator[None]:
    """Torch uses this many threads inside, and afterwards as many as before.

    Args:
        count: At least 1.

    Example:
        >>> import torch
        >>> with threads_used(1):
        ...     torch.get_num_threads()
        1
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores' worth of time that the process's control group may use, of both versions; None: no limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = [word for name in names for word in (root / name).read_text().split()]
            quota, period = (float(word) for word in words)
        except (OSError, ValueError):  # not this version, or "max"
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None
