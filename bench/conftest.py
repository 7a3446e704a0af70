"""pytest-benchmark's JSON carries what the figures were measured on."""

from __future__ import annotations

from typing import Any

from spela.benchmarks import describe_machine

__all__ = ["pytest_benchmark_update_machine_info"]


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info |= describe_machine()
