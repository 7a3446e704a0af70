"""Memory that a step frees stays with the process, so that the next step does not fetch it page by page."""

from __future__ import annotations

import ctypes
import functools

__all__ = ["keep_freed_memory"]

# Of glibc's <malloc.h>.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_KEPT_BYTES = 2**31 - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory instead of giving it back to the system.

    By default glibc maps large blocks anew each time, and a training step then waits for the system to zero
    the pages of every large buffer. It is a setting of the whole process: the command line makes it for
    itself; a program that trains on the CPU may. Nothing is given back between steps, and the heap's gaps
    cost some per cent of memory.

    Returns:
        Whether the C library took it; False where it is not glibc.

    Source: mallopt(3).

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)) and bool(mallopt(_MMAP_MAX, 0))
