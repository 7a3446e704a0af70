"""`--publish` adds what a call asked for, of the experiments that it names; the rest of the folder stays."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from spela.cli import main
from spela.experiments.archive import read_archives
from spela.experiments.declare import Experiment, Row
from spela.experiments.registry import EXPERIMENTS

SMALL = {"layers": (8, 8), "epochs": 2}
BEST, RIVAL = Row("best", "best", settings=SMALL), Row("backprop", "backprop", settings=SMALL)


@pytest.fixture(autouse=True)
def small_experiments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Two experiments that share a run, and a file of data, `few.npz`; t-SNE of few samples."""
    monkeypatch.setattr("spela.reports.geometry._SAMPLES", 20)
    small = {
        name: Experiment(name, "A test", ("digits",), rows)
        for name, rows in (("mlp", (BEST, RIVAL)), ("ablation", (BEST,)))
    }
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    x, y = draw.random((60, 6), np.float32), np.arange(60) % 3
    np.savez("few.npz", train_x=x[:30], train_y=y[:30], test_x=x[30:], test_y=y[30:])
    with patch.dict(EXPERIMENTS, small, clear=True):  # put back in their order, which tables have
        yield


def _reproduce(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(sys, "argv", ["spela", "reproduce", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


def _rows(folder: str, name: str) -> dict[tuple[str, str], list[int]]:
    """The seeds of every row with figures."""
    rows: list[dict[str, Any]] = json.loads(Path(folder, f"{name}.json").read_text())["rows"]
    return {(row["row"], row["data"]): row["seeds"] for row in rows if row["seeds"]}


def _archived(folder: str) -> dict[str, list[str]]:
    return {name: sorted(lines) for name, lines in read_archives(Path(folder, "runs")).items()}


def test_what_was_published_before_stays() -> None:
    publish = ("--publish", "pub")
    assert _reproduce("mlp", "--data", "few.npz,digits", "--out", "a", *publish) == 0
    assert _reproduce("ablation", "--data", "few.npz", "--out", "a", *publish) == 0
    before, archived = _rows("pub", "mlp"), _archived("pub")
    assert set(map(tuple, before.values())) == {(0, 1, 2)}
    assert len(before) == 4
    assert list(archived) == ["mlp"]  # and the shared runs there only
    assert len(archived["mlp"]) == 12
    ablation = Path("pub/ablation.json").read_bytes()
    # From a folder that has other tables too, of the same experiments.
    assert (
        _reproduce("all", "--data", "digits", "--seeds", "0,1", "--out", "b", "--rows", "b*") == 0
    )
    call = ("mlp", "--data", "digits", "--seeds", "0,1", "--out", "b", "--report-only")
    assert _reproduce(*call, *publish) == 0
    assert _rows("pub", "mlp") == before
    assert _archived("pub") == archived
    assert Path("pub/ablation.json").read_bytes() == ablation
    assert _reproduce("all", "--data", "digits", "--seeds", "3", "--out", "b", *publish) == 0
    assert _rows("pub", "mlp")["best", "digits"] == [0, 1, 2, 3]
    assert _rows("pub", "ablation") == {("best", "few"): [0, 1, 2], ("best", "digits"): [3]}
    assert len(_archived("pub")["mlp"]) == 14
    assert list(_archived("pub")) == ["mlp"]


def test_only_runs_of_the_declared_settings_are_published(
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = ("--data", "digits", "--seeds", "0", "--epochs", "1", "--out", "a")
    assert _reproduce("mlp", *short) == 0
    assert _reproduce("ablation", *short) == 0
    capsys.readouterr()
    assert _reproduce("mlp", *short, "--report-only", "--publish", "pub") == 2
    assert "--epochs makes other runs than the experiments declare" in capsys.readouterr().err
    call = ("mlp", "--data", "digits", "--seeds", "1", "--out", "a", "--publish", "pub")
    assert _reproduce(*call) == 0
    shown = {key for keys in _archived("pub").values() for key in keys}
    table = json.loads(Path("pub/mlp.json").read_text())
    assert shown == {key for row in table["rows"] for key in row["finished"]}
    assert len(shown) == 2
    assert [path.name for path in Path("pub").glob("*.json")] == ["mlp.json"]


def test_pictures_of_published_runs_are_shown_and_no_others() -> None:
    call = ("mlp", "--data", "digits", "--out", "a")
    assert _reproduce(*call, "--seeds", "0,1") == 0
    rows = json.loads(Path("a/mlp.json").read_text())["rows"]
    first, second = rows[0]["finished"]
    Path(f"a/plots/layers-{first}.png").rename(f"a/plots/layers-{second}.png")
    Path("a/plots/layers-gone.png").write_bytes(b"stale")
    assert _reproduce(*call, "--seeds", "0,1", "--report-only", "--publish", "pub") == 0
    names = [path.name for path in Path("pub/plots").glob("layers-*")]
    assert names == [f"layers-{second}.png"]
    report = Path("pub/report.md").read_text()
    assert f"(plots/layers-{second}.png)" in report
    assert "not drawn" not in report


def test_a_published_run_says_which_file_it_learnt_from_and_not_where_it_lay() -> None:
    Path("here").mkdir()
    file = Path("few.npz").rename(Path("here", "few.npz")).resolve()
    call = ("--data", str(file), "--seeds", "0", "--rows", "best")
    assert _reproduce("mlp", *call, "--out", "a", "--publish", "pub") == 0
    (line,) = read_archives(Path("pub", "runs"))["mlp"].values()
    assert line["summary"]["config"]["data"] == "few.npz"
    assert str(file.parent) not in Path("pub", "runs", "mlp.jsonl").read_text()
    before = _rows("pub", "mlp")
    assert before == {("best", "few"): [0]}
    file.unlink()
    assert _reproduce("mlp", "--data", "digits", "--out", "pub", "--report-only") == 2  # has none
    assert _rows("pub", "mlp") == before
