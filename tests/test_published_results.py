"""The main table shows what docs/results holds, the README its headline rows, and the tables there are
of their runs, which have the settings that the experiments declare today and records of all their epochs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spela.data import dataset_names
from spela.experiments.archive import find_run, read_archives
from spela.experiments.plan import Options, plan, run_key
from spela.experiments.registry import EXPERIMENTS
from spela.experiments.reproduce import rebuild
from spela.experiments.tables import build_table, read_tables, with_kept
from spela.reports.readme import MAIN, SUMMARY, main_table, summary_table
from spela.training import RunConfig, read_evidence

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
TABLES = read_tables(Options(RESULTS), list(EXPERIMENTS))
# A run in two archives is there twice.
RUNS = sorted(key for lines in read_archives(RESULTS / "runs").values() for key in lines)


def _between(file: str, markers: tuple[str, str]) -> str:
    text = (ROOT / file).read_text(encoding="utf-8")
    begin, end = markers
    return text[text.index(begin) + len(begin) : text.index(end)].strip()


def test_the_page_and_the_readme_are_up_to_date() -> None:
    shown = _between("docs/measurements/accuracy.md", MAIN)
    assert TABLES
    assert main_table(TABLES, shown) == shown
    assert _between("README.md", SUMMARY) == summary_table(shown)


def test_rows_of_the_readme_have_their_records_or_a_dagger() -> None:
    recorded = summary_table(main_table(TABLES)).splitlines()
    shown = _between("README.md", SUMMARY).splitlines()
    assert [line for line in shown if line not in recorded and "†" not in line] == []


def test_the_readme_is_short_and_its_speeds_are_those_of_the_page() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 180
    assert len(_between("README.md", SUMMARY).splitlines()) - 2 <= 15
    start = next(i for i, line in enumerate(lines) if line.startswith("| network step"))
    speeds = lines[start : lines.index("", start)]
    assert 2 < len(speeds) <= 2 + 6
    page = (ROOT / "docs/measurements/speed.md").read_text(encoding="utf-8").splitlines()
    assert set(speeds) <= set(page)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table["experiment"])
def test_tables_are_those_of_the_runs(table: dict) -> None:
    assert not table["quick"]
    data = {row["data"] for row in table["rows"] if "accuracy" in row} & {*dataset_names()}
    options = Options(RESULTS, tuple(table["seeds"]), tuple(sorted(data)))
    experiment = EXPERIMENTS[table["experiment"]]
    jobs = plan(experiment, options)
    if not data:  # files, which are not here
        jobs = with_kept(experiment, options, jobs)
    again = build_table(experiment, options, jobs)
    assert _figures(again) == _figures(table)
    assert _figures(table)


@pytest.mark.parametrize("key", RUNS)
def test_the_figures_of_a_run_agree(key: str) -> None:
    run = find_run(RESULTS / "runs", key)
    evidence = read_evidence(run)
    config = RunConfig.from_dict(run.read_json(run.config))
    assert evidence.summary is not None
    assert evidence.summary["config"] == config.to_dict()
    epochs = [record["epoch"] for record in evidence.records]
    assert epochs == list(range(1, config.total_epochs + 1))
    assert evidence.records[-1]["test_accuracy"] == evidence.summary["test_accuracy"]
    if config.data in dataset_names():
        assert run_key(config) == key
    else:  # the key is made from the file, too, which is not here
        assert config.data == Path(config.data).name
        assert key.startswith(f"{config.recipe}-{Path(config.data).stem}-s{config.seed}-")


def test_a_call_for_some_of_the_data_loses_no_row(tmp_path: Path) -> None:
    shutil.copytree(RESULTS, tmp_path / "results")
    options = Options(tmp_path / "results")
    some = replace(options, seeds=(0, 1), data=("fashion-mnist",))
    made = [rebuild(EXPERIMENTS[table["experiment"]], some) for table in TABLES]
    assert any(made)
    again = read_tables(options, list(EXPERIMENTS))
    assert [*map(_figures, again)] == [*map(_figures, TABLES)]


def test_every_run_is_in_a_table_and_in_one_archive() -> None:
    shown = {key for table in TABLES for row in table["rows"] for key in row["finished"]}
    assert sorted(shown) == RUNS


def test_there_are_few_files() -> None:
    files = [path for path in RESULTS.rglob("*") if path.is_file() and path.name != ".lock"]
    assert len([path for path in files if path.name != "report.html"]) <= 60


def _figures(table: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that have figures; why others have none depends on the data that a machine has, and whether
    one is done on the seeds that are asked for."""
    asked = {"status", "runs"}
    found = [row for row in table["rows"] if "accuracy" in row]
    return [{name: row[name] for name in row.keys() - asked} for row in found]
