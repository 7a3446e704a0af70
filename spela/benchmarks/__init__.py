"""Measured benchmarks: cases, named baselines and floors, interleaved clocks, memory and scaling."""

from spela.benchmarks.blocks import block_points
from spela.benchmarks.groups import GROUPS, Row, groups_of, run_groups
from spela.benchmarks.table import format_rows, to_json

__all__ = [
    "GROUPS",
    "Row",
    "block_points",
    "format_rows",
    "groups_of",
    "run_groups",
    "to_json",
]
