"""The README's table shows what docs/results holds, the tables there what their runs measured, and those runs
have the settings that the experiments declare today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spela.experiments.plan import Options, plan
from spela.experiments.registry import EXPERIMENTS
from spela.experiments.tables import mean_and_deviation, read_tables
from spela.results.readme import BEGIN, END, main_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
TABLES = read_tables(Options(RESULTS), list(EXPERIMENTS))


def test_the_readme_is_up_to_date() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()
    assert TABLES
    assert main_table(TABLES, shown) == shown


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table["experiment"])
def test_figures_are_those_of_the_runs(table: dict) -> None:
    rows = [row for row in table["rows"] if "accuracy" in row]
    assert not table["quick"]
    for row in rows:
        summaries = [
            json.loads((RESULTS / "runs" / key / "summary.json").read_text(encoding="utf-8"))
            for key in row["finished"]
        ]
        for layer, figure in enumerate(row["accuracy"]):
            again = mean_and_deviation([100 * s["test_accuracy"][layer] for s in summaries])
            assert {name: figure[name] for name in again} == pytest.approx(again)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table["experiment"])
def test_runs_have_the_settings_of_today(table: dict) -> None:
    rows = {(row["row"], row["data"]): row for row in table["rows"] if "accuracy" in row}
    data = tuple(sorted({data for _, data in rows}))
    jobs, skips = plan(EXPERIMENTS[table["experiment"]], Options(RESULTS, data=data))
    if skips:
        pytest.skip(skips[0].reason)
    keys = [job.key for job in jobs if (job.row.name, job.config.data) in rows]
    assert keys == [key for row in rows.values() for key in row["runs"]]
