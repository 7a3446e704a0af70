"""The rows of `spela bench` as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from spela.benchmarks.groups import Row

__all__ = ["format_rows", "to_json"]


def format_rows(rows: Sequence[Row]) -> str:
    """A table, one line a figure; the last column is the figure over ours.

    Example:
        >>> print(format_rows([Row("epoch", "a", "spela", 2.0, "ms", 1.0)]))
        epoch: a
          spela                        2 ms     1.00x
    """
    lines, last = [], None
    for row in rows:
        if (row.group, row.case) != last:
            lines.append(f"{row.group}: {row.case}")
            last = (row.group, row.case)
        ratio = "" if row.ratio is None else f"{row.ratio:9.2f}x"
        unit = "" if row.unit == "exponent" else f" {row.unit}"
        prefix = "time ~ size^" if row.unit == "exponent" else ""
        lines.append(f"  {row.variant:21s} {prefix + format(row.value, '.4g'):>8s}{unit}{ratio}")
    return "\n".join(lines)


def to_json(rows: Sequence[Row], machine: dict[str, Any], quick: bool) -> dict[str, Any]:
    """The rows with what they were measured on.

    Args:
        rows: From `run_groups`.
        machine: From `describe_machine`.
        quick: Whether it was the short run.
    """
    return {"machine": machine, "quick": quick, "rows": [asdict(row) for row in rows]}
