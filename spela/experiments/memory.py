"""The benchmark's figures of memory and time against depth and width: measured once, kept, checked."""

from __future__ import annotations

import json
import math
from typing import Any

import torch

from spela.benchmarks.memory import SHAPES, memory_points
from spela.experiments.plan import Options
from spela.files.atomic import write_atomically

__all__ = ["MEMORY_FILE", "measure_memory"]

MEMORY_FILE = "bench-memory.json"
_NUMBERS = ("depth", "width", "peak_bytes", "step_ms", "multiply_adds")


def measure_memory(options: Options) -> dict[str, Any]:
    """The points of OUT/bench-memory.json; the benchmark runs where the file is not there yet.

    The file holds {"threads": 2, "points": [{"method": "spela", "depth": 3, "width": 1024, "peak_bytes":
    1e6, "step_ms": 2.5, "multiply_adds": 1e9}, ...]}: peak memory of a training step above what stays, its
    median time, and the multiply-adds of its matrix products.

    Args:
        options: What was asked for; the file is in the results folder.

    Returns:
        {"threads": ..., "points": [...]}, or {"unavailable": reason}.
    """
    path = options.folder / MEMORY_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        points = memory_points([(2, 64), (4, 64)] if options.quick else SHAPES)
        threads = torch.get_num_threads()
        found = json.dumps({"threads": threads, "points": points}, indent=2)
        write_atomically(path, found)
    try:
        return _checked(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        return {
            "unavailable": f"{path} does not hold the benchmark's figures ({error!r}): remove it"
        }


def _checked(held: dict[str, Any]) -> dict[str, Any]:
    """The figures by name, positive, each beside backprop's of the same size."""
    points: list[dict[str, Any]] = [
        {"method": str(p["method"]), **{name: float(p[name]) for name in _NUMBERS}}
        for p in held["points"]
    ]
    if not all(0 < p[name] < math.inf for p in points for name in _NUMBERS):
        raise ValueError("figures must be positive and finite")
    sizes, compared = (
        {(p["depth"], p["width"]) for p in chosen}
        for chosen in (points, [p for p in points if p["method"] == "backprop"])
    )
    if sizes != compared:
        raise ValueError(f"backprop is missing at {sorted(sizes - compared)}")
    return {"threads": int(held["threads"]), "points": points}
