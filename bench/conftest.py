"""pytest's set-up for `make bench`: the process set as by the command line, the machine noted in the JSON."""

from __future__ import annotations

from typing import Any

import torch

from spela.process import keep_freed_memory
from spela.process.machine import describe_machine

__all__ = ["pytest_benchmark_update_machine_info"]

# Before any benchmark allocates memory; for the baselines as for ours.
keep_freed_memory()
torch.set_flush_denormal(True)


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info |= describe_machine()
