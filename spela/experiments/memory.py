"""The benchmark's figures of memory and time against depth, checked."""

from __future__ import annotations

import json
from typing import Any

from spela.experiments.plan import Options

__all__ = ["MEMORY_FILE", "read_memory"]

MEMORY_FILE = "bench-memory.json"
_NUMBERS = ("depth", "width", "peak_bytes", "step_ms")


def read_memory(options: Options) -> dict[str, Any]:
    """The points of OUT/bench-memory.json, which the benchmark writes.

    The file holds {"points": [{"method": "spela", "depth": 3, "width": 1024, "peak_bytes": 1e6,
    "step_ms": 2.5}, ...]}: peak memory of a training step above what stays, and its median time.

    Args:
        options: What was asked for; the file is looked for in the results folder.

    Returns:
        {"points": [...]}, or {"unavailable": reason}.
    """
    path = options.out / MEMORY_FILE
    if not path.exists():
        return {
            "unavailable": f"no figures of the benchmark: {MEMORY_FILE} is not in {options.out}"
        }
    try:
        points = json.loads(path.read_text(encoding="utf-8"))["points"]
        return {
            "points": [
                {"method": str(p["method"]), **{name: float(p[name]) for name in _NUMBERS}}
                for p in points
            ]
        }
    except (ValueError, KeyError, TypeError) as error:
        return {"unavailable": f"{path} does not hold the benchmark's figures ({error!r})"}
