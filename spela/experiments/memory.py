"""The benchmark's figures of memory and time against depth and width: measured once, kept, checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from spela.benchmarks.memory import SHAPES, memory_points
from spela.experiments.plan import Options
from spela.training.records import write_atomically

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
        write_atomically(path, lambda name: Path(name).write_text(found, encoding="utf-8"))
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return {
            "threads": int(held["threads"]),
            "points": [
                {"method": str(p["method"]), **{name: float(p[name]) for name in _NUMBERS}}
                for p in held["points"]
            ],
        }
    except (ValueError, KeyError, TypeError) as error:
        return {
            "unavailable": f"{path} does not hold the benchmark's figures ({error!r}): remove it"
        }
