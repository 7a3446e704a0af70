"""The README's table shows what docs/results holds, and the tables there are those of their runs, which have
the settings that the experiments declare today and records of all their epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spela.experiments.plan import Options, plan
from spela.experiments.registry import EXPERIMENTS
from spela.experiments.tables import build_table, read_tables
from spela.results.readme import BEGIN, END, main_table
from spela.training import RunConfig, RunFolder, read_evidence

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
RUNS = sorted(path for path in (RESULTS / "runs").iterdir() if path.is_dir())
TABLES = read_tables(Options(RESULTS), list(EXPERIMENTS))


def test_the_readme_is_up_to_date() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()
    assert TABLES
    assert main_table(TABLES, shown) == shown


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table["experiment"])
def test_tables_are_those_of_the_runs(table: dict) -> None:
    assert not table["quick"]
    data = {row["data"] for row in table["rows"] if "accuracy" in row}
    options = Options(RESULTS, tuple(table["seeds"]), tuple(sorted(data)))
    experiment = EXPERIMENTS[table["experiment"]]
    again = build_table(experiment, options, plan(experiment, options))
    assert _figures(again) == _figures(table)
    assert _figures(table)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_the_files_of_a_run_agree(path: Path) -> None:
    folder = RunFolder(path)
    evidence = read_evidence(folder)
    config = RunConfig.from_dict(folder.read_json(folder.config))
    assert evidence.summary is not None
    assert evidence.summary["config"] == config.to_dict()
    assert [record["epoch"] for record in evidence.records] == list(
        range(1, config.total_epochs + 1)
    )
    assert evidence.records[-1]["test_accuracy"] == evidence.summary["test_accuracy"]
    held = {file.name for file in path.iterdir()} - {".lock"}
    assert held == {"config.json", "metrics.jsonl", "summary.json"}


def test_every_run_is_in_a_table() -> None:
    assert {key for table in TABLES for row in table["rows"] for key in row["finished"]} == {
        path.name for path in RUNS
    }


def _figures(table: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that have figures; why others have none depends on the data that a machine has."""
    return [row for row in table["rows"] if "accuracy" in row]
