"""What every fuzz test shares: how much to try, and a bound on memory.

`make test` tries a fixed few examples, the same on every run. `FUZZ=50 python -m pytest tests/fuzz`
tries fifty times as many, new ones on every run, and keeps failures in .hypothesis.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, Phase, settings

TIMES = int(os.environ.get("FUZZ", "1"))
MEMORY = 512 * 2**20


def fuzz(examples: int) -> Callable[[Any], Any]:
    """Settings of one fuzz test that tries `examples`, or as many more as FUZZ says."""
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        derandomize=TIMES == 1,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Half a gigabyte more than now and no further: what asks for more fails with MemoryError."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def check_error(error: BaseException, names: str = "") -> None:
    """A documented error: its message is one line, says something, and names what it should."""
    message = str(error)
    assert message.strip()
    assert names in message
    assert "\n" not in message, message
