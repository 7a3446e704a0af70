"""Published runs: the same tables from one file an experiment as from the run folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from spela.experiments.archive import find_run, read_archives
from spela.experiments.plan import Options
from spela.experiments.publish import publish
from spela.experiments.registry import EXPERIMENTS
from spela.experiments.reproduce import reproduce
from spela.experiments.runner import run_folder
from spela.experiments.tables import read_tables
from spela.training import read_evidence


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """One row of one experiment, run for a moment."""
    out = tmp_path_factory.mktemp("archive") / "results"
    options = Options(out, (0,), quick=True, rows="objective cosine")
    reproduce(EXPERIMENTS["ablation"], options)
    return options


def test_a_published_folder_gives_the_same_rows_and_records(
    results: Options, tmp_path: Path
) -> None:
    published = replace(results, out=tmp_path / "published")
    assert publish([EXPERIMENTS["ablation"]], results, published.out) == ["ablation"]
    (ours,), (theirs,) = (read_tables(o, ["ablation"]) for o in (results, published))
    rows = [row for row in ours["rows"] if "accuracy" in row]
    assert len(rows) == 1
    assert [row for row in theirs["rows"] if "accuracy" in row] == rows
    (key,) = rows[0]["finished"]
    assert [p.name for p in (published.folder / "runs").iterdir()] == ["ablation.jsonl"]
    assert read_evidence(run_folder(published, key)) == read_evidence(run_folder(results, key))
    # Publishing again, from the published folder's own runs or from none, loses nothing.
    text = (published.folder / "runs" / "ablation.jsonl").read_text()
    none = Options(tmp_path / "none", (0,), quick=True)
    assert publish([EXPERIMENTS["ablation"]], none, published.out) == []
    assert (published.folder / "runs" / "ablation.jsonl").read_text() == text
    with pytest.raises(ValueError, match="publish to another folder"):
        publish([EXPERIMENTS["ablation"]], results, results.out)


def test_a_damaged_archive_is_refused_by_line(results: Options, tmp_path: Path) -> None:
    published = replace(results, out=tmp_path / "published")
    publish([EXPERIMENTS["ablation"]], results, published.out)
    runs = published.folder / "runs"
    (key,) = read_archives(runs)["ablation"]
    path = runs / "ablation.jsonl"
    line = json.loads(path.read_text())
    for broken, match in (
        ({**line, "metrics": line["metrics"][1:]}, "disagrees with itself"),
        ({**line, "metrics": None}, "line 1: not a published run"),
        ([], "line 1: not a published run"),
    ):
        path.write_text(json.dumps(broken) + "\n")
        with pytest.raises(ValueError, match=match):
            read_evidence(find_run(runs, key))


def test_what_was_measured_of_published_runs_stays(tmp_path: Path) -> None:
    experiment = EXPERIMENTS["early-exit"]
    target = tmp_path / "published"

    def published(name: str, seed: int, rows: str = "best") -> dict:
        options = Options(tmp_path / name, (seed,), quick=True, rows=rows)
        reproduce(experiment, options)
        publish([experiment], options, target)
        return read_tables(replace(options, out=target), ["early-exit"])[0]["measured"]

    first = published("a", 0)
    assert [entry["seed"] for entry in first["halves"]] == [0]
    second = published("b", 1)  # another folder, which has not the first one's runs
    assert [entry["seed"] for entry in second["halves"]] == [0, 1]
    assert len(second["points"]) == 2 * len(first["points"])
    # A folder without a run has nothing to measure, which takes nothing away.
    assert published("c", 0, "best, 5 layers, nothing") == second
