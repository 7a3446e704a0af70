"""This process's resident memory, as /proc tells it: now, and at most. Linux only."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["peak_resident_bytes", "resident_bytes", "restart_peak"]


def resident_bytes() -> int:
    """Bytes that are resident now.

    Raises:
        OSError: If the system does not tell.
    """
    return _of_status("VmRSS", "memory")


def peak_resident_bytes() -> int:
    """Most bytes that were resident at once, since the process began or `restart_peak` was called.

    Raises:
        OSError: If the system does not tell.
    """
    return _of_status("VmHWM", "peak memory")


def restart_peak() -> None:
    """Let the peak start again from what is resident now.

    Raises:
        OSError: If the system cannot.
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _of_status(field: str, what: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    if found is None:
        raise OSError(f"this system does not tell a process's {what} in /proc/self/status")
    return 1024 * int(found.group(1))
