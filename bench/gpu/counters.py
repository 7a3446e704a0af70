"""Part `counters`: what ncu counts in each kernel, beside the bytes that the cost model expects."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bench.gpu.kernels import TABLE
from bench.gpu.layers import linear_model, projection_model
from bench.gpu.meters import find_card
from bench.gpu.processes import Command, run_together
from bench.gpu.rows import Rows
from bench.gpu.setting import Setting
from spela_kernels.cost.traffic import LaunchCost
from spela_kernels.gpu.architectures import Architecture
from spela_kernels.gpu.launching import architecture_of
from spela_kernels.linear import cost as linear_cost
from spela_kernels.linear.parity import Case as LinearCase
from spela_kernels.projection import cost as projection_cost

__all__ = ["expected_launches", "measure", "read_counters"]

_ROOT = Path(__file__).resolve().parents[2]
_LIMIT = 34.0
_METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__bytes_read.sum": "read_bytes",
    "dram__bytes_write.sum": "written_bytes",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram_%",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps_%",
    "launch__registers_per_thread": "registers",
}


def expected_launches(arch: Architecture) -> list[tuple[str, LaunchCost]]:
    """The launches of the table's cases, in order, as the cost model has them."""
    found = []
    for name, case in TABLE.items():
        if isinstance(case, LinearCase):
            cost = linear_cost.step_cost(linear_model(case), arch)
        else:
            cost = projection_cost.step_cost(projection_model(case), arch)
        found += [(name, launch) for launch in cost.launches]
    return found


def read_counters(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The launches of an ncu report (--csv --print-units base), in order: kernel, and figures by name.

    Args:
        lines: Of the output; what comes before the table is passed over.
    """
    text = list(lines)
    start = next((i for i, line in enumerate(text) if line.startswith('"ID"')), len(text))
    launches: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(line for line in text[start:] if line.startswith('"')):
        name = _METRICS.get(row["Metric Name"])
        if name is not None:
            launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"].split("(")[0]})
            launch[name] = float(row["Metric Value"].replace(",", ""))
    return list(launches.values())


def measure(rows: Rows, setting: Setting) -> None:
    """A row a launch; without ncu the model's bytes alone."""
    gpu = find_card()
    cache = torch.cuda.get_device_properties(0).L2_cache_size if gpu is None else gpu.cache_bytes
    expected = expected_launches(architecture_of(torch.device(setting.device)))
    counted = _counted(rows, setting, [launch.name for _, launch in expected])
    problem = ""
    for index, (name, launch) in enumerate(expected):
        found = dict(counted[index]) if index < len(counted) else {}
        kernel = found.pop("kernel", None)
        if kernel is not None and kernel != f"{launch.name}_kernel":
            problem = f"launch {index} is {kernel}, the cost model expects {launch.name}_kernel"
            rows.note(f"{problem}: no counters from there on.")
            found, counted = {}, counted[:index]
        modelled = launch.device_bytes(cache)
        cells: dict[str, Any] = {"case": name, "kernel": launch.name, "modelled_mb": modelled / 1e6}
        if found:
            moved = found.pop("read_bytes", 0.0) + found.pop("written_bytes", 0.0)
            cells |= {"counted_mb": moved / 1e6, "of_model": moved / modelled, **found}
        rows.add("counters", **cells)
    if problem:
        raise SystemExit(problem)


def _counted(rows: Rows, setting: Setting, names: list[str]) -> list[dict[str, Any]]:
    tool = shutil.which("ncu")
    if tool is None:
        rows.note(
            "ncu is not on this machine: no hardware counters, only what the cost model expects."
        )
        return []
    kernels = "|".join(f"{name}_kernel" for name in dict.fromkeys(names))
    # Caches are emptied before each kernel, as the model has it, by ncu itself.
    command = [tool, "--clock-control", "none", "--print-units", "base", "--csv"]
    command += ["-k", f"regex:^({kernels})$", "--metrics", ",".join(_METRICS)]
    command += [sys.executable, "-m", "bench.gpu.kernels", "table", "--device", setting.device]
    log = setting.folder / "ncu.csv"
    outcome = run_together({"ncu": Command(command, _LIMIT, log, os.environ, _ROOT)})["ncu"]
    launches = read_counters(log.read_text(encoding="utf-8", errors="replace").splitlines())
    if outcome.status != "ok" or not launches:
        last = (outcome.tail.strip().splitlines() or ["nothing"])[-1]
        rows.note(f"ncu: {outcome.status}, {len(launches)} launches counted; it said: {last}")
    return launches
