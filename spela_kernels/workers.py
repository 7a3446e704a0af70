"""How many threads or processes a command may be told to use."""

from __future__ import annotations

import os

__all__ = ["check_workers"]

# More than one a processor only wait for each other; some more may be wanted to repeat another machine's run.
_A_PROCESSOR = 4


def check_workers(number: int, option: str) -> int:
    """Refuse a number that this machine could not start: OpenMP ends the process where threads fail.

    Args:
        number: Of threads or processes.
        option: Which option named it, for the message.

    Returns:
        `number`.

    Raises:
        ValueError: If it is below 1 or more than four for each processor.

    Example:
        >>> check_workers(1, "--threads")
        1
    """
    most = _A_PROCESSOR * (os.cpu_count() or 1)
    if not 1 <= number <= most:
        raise ValueError(
            f"{option} must be in 1..{most} (four for each processor of this machine), got {number}"
        )
    return number
