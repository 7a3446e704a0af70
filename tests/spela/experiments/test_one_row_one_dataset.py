"""A row of a table is of one dataset, on one kind of device: whatever lay under its name before."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spela.data import Dataset
from spela.experiments import load_data, load_run, make_config, run, runner
from spela.experiments.archive import read_archives
from spela.experiments.declare import Experiment, Row
from spela.experiments.plan import Options, plan
from spela.experiments.publish import publish
from spela.experiments.reproduce import rebuild, reproduce
from spela.experiments.runner import run_folder
from spela.features import save_features

SMALL = {"layers": (6, 6), "epochs": 1}
ROWS = (Row("ours", "best", settings=SMALL), Row("other", "tmlr", settings=SMALL))
EXPERIMENT = Experiment("mlp", "A test", ("digits",), ROWS)


def _write(path: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    y = np.arange(60) % 3
    x = draw.random((60, 6), np.float32)
    path.parent.mkdir(exist_ok=True)
    np.savez(path, train_x=x[:30], train_y=y[:30], test_x=x[30:], test_y=y[30:])


def _options(tmp_path: Path, *data: str, seeds: tuple[int, ...] = (0,), **more: Any) -> Options:
    return Options(tmp_path / "out", seeds, data, **{"rows": "ours", **more})


def _seeds(table: dict[str, Any] | None) -> dict[tuple[str, str], list[int]]:
    assert table is not None
    return {(row["row"], row["data"]): row["seeds"] for row in table["rows"] if row["seeds"]}


def _published(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "pub" / "mlp.json").read_text())


def test_seeds_of_a_file_that_was_changed_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "my.npz"
    _write(path, 0)
    three = _options(tmp_path, str(path), seeds=(0, 1, 2))
    reproduce(EXPERIMENT, three)
    publish([EXPERIMENT], three, tmp_path / "pub")
    assert _seeds(_published(tmp_path)) == {("ours", "my"): [0, 1, 2]}
    moved = tmp_path / "elsewhere" / "my.npz"  # the same content counts on
    moved.parent.mkdir()
    moved.write_bytes(path.read_bytes())
    one = _options(tmp_path, str(moved), seeds=(1,))
    with caplog.at_level(logging.WARNING):
        publish([EXPERIMENT], one, tmp_path / "pub")
    assert _seeds(_published(tmp_path)) == {("ours", "my"): [0, 1, 2]}
    assert not caplog.records
    _write(path, 1)
    one = _options(tmp_path, str(path))
    reproduce(EXPERIMENT, one)
    publish([EXPERIMENT], one, tmp_path / "pub")
    assert _seeds(_published(tmp_path)) == {("ours", "my"): [0]}
    assert "what ran on my before is left out" in caplog.text
    assert _seeds(rebuild(EXPERIMENT, one)) == {("ours", "my"): [0]}


def test_a_dataset_and_a_file_of_its_name_are_two(tmp_path: Path) -> None:
    named = _options(tmp_path, "digits", seeds=(0, 1))
    reproduce(EXPERIMENT, named)
    publish([EXPERIMENT], named, tmp_path / "pub")
    path = tmp_path / "digits.npz"
    _write(path, 0)
    own = _options(tmp_path, str(path), seeds=(2,))
    reproduce(EXPERIMENT, own)
    publish([EXPERIMENT], own, tmp_path / "pub")
    assert _seeds(_published(tmp_path)) == {("ours", "digits"): [2]}
    publish([EXPERIMENT], named, tmp_path / "pub")
    assert _seeds(_published(tmp_path)) == {("ours", "digits"): [0, 1]}


def test_a_name_in_other_letters_is_the_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "Digits" / "x.npz", 0)
    assert _options(tmp_path, "Digits").data == ("digits",)
    assert make_config("DIGITS").data == "digits"
    assert {job.problem for job in plan(EXPERIMENT, _options(tmp_path, "Digits"))} == {""}
    assert plan(EXPERIMENT, _options(tmp_path, "Digits"))[0].key.startswith("best-digits-s0-")


def _features(path: Path, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(60, 6, generator=g), torch.arange(60) % 3
    data = Dataset(
        "pets", x[:40], y[:40], x[40:], y[40:], num_classes=3, class_names=("a", "b", "c")
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"name": "pets-lite", "dataset": "pets", "class_names": ["a", "b", "c"]}
    save_features(path, data, {**facts, "backbone": "efficientnet-lite0", "size": 96})


def test_a_feature_file_counts_once_by_whatever_path(tmp_path: Path) -> None:
    found, mine = (
        tmp_path / "root" / "features" / "pets-lite.safetensors",
        tmp_path / "pets-lite.safetensors",
    )
    _features(found, 0)
    _features(mine, 1)
    experiment = replace(EXPERIMENT, data=("features",))
    root = {"data_root": tmp_path / "root"}
    way_round = found.parent / ".." / "features" / found.name
    jobs = plan(experiment, _options(tmp_path, "pets", str(way_round), **root))
    assert len(jobs) == len({job.key for job in jobs}) == 2
    with pytest.raises(ValueError, match="two datasets are named pets-lite"):
        plan(experiment, _options(tmp_path, "pets", str(mine), **root))


def test_runs_of_two_kinds_of_device_are_not_published_together(tmp_path: Path) -> None:
    path = tmp_path / "my.npz"
    _write(path, 0)
    options = _options(tmp_path, str(path))
    reproduce(EXPERIMENT, options)
    publish([EXPERIMENT], options, tmp_path / "pub")
    other = replace(options, out=tmp_path / "gpu", seeds=(1,))
    (row, *_) = reproduce(EXPERIMENT, other)["rows"]
    summary = run_folder(other, row["finished"][0]).summary
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"device": "cuda:0"}))
    before = _published(tmp_path), read_archives(tmp_path / "pub" / "runs")
    with pytest.raises(ValueError, match="runs made on cpu and cuda would stand in one table"):
        publish([EXPERIMENT], other, tmp_path / "pub")
    assert (_published(tmp_path), read_archives(tmp_path / "pub" / "runs")) == before
    assert publish([EXPERIMENT], other, tmp_path / "pub-gpu") == ["mlp"]


def test_only_the_rows_asked_for_are_published(tmp_path: Path) -> None:
    path = tmp_path / "my.npz"
    _write(path, 0)
    reproduce(EXPERIMENT, _options(tmp_path, str(path), rows="*"))
    publish([EXPERIMENT], _options(tmp_path, str(path), rows="other"), tmp_path / "pub")
    (key,) = read_archives(tmp_path / "pub" / "runs")["mlp"]
    assert key.startswith("tmlr-my-s0-")
    assert _seeds(_published(tmp_path)) == {("other", "my"): [0]}


def test_what_was_measured_of_a_run_that_is_in_no_row_goes(tmp_path: Path) -> None:
    path = tmp_path / "my.npz"
    experiment = Experiment("early-exit", "A test", ("digits",), ROWS[:1], measure="exits")
    for seed in (0, 1):
        _write(path, seed)
        options = _options(tmp_path, str(path))
        table = reproduce(experiment, options)
        publish([experiment], options, tmp_path / "pub")
        published = json.loads((tmp_path / "pub" / "early-exit.json").read_text())
        for part in ("points", "halves"):
            assert {entry["run"] for entry in published["measured"][part]} == {
                table["rows"][0]["finished"][0]
            }


def test_a_row_that_failed_says_so_after_a_report_of_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        _write(tmp_path / f"{name}.npz", 0)
    made = runner.run

    def failing(config: Any, *arguments: Any, **settings: Any) -> Any:
        if config.seed == 1 and config.data.endswith("a.npz"):
            raise ValueError("the loss of layer 1 became nan")
        return made(config, *arguments, **settings)

    monkeypatch.setattr(runner, "run", failing)
    both = _options(tmp_path, str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), seeds=(0, 1))
    reproduce(EXPERIMENT, both)
    table = rebuild(EXPERIMENT, _options(tmp_path, str(tmp_path / "b.npz"), seeds=(0, 1)))
    assert table is not None
    rows = {row["data"]: row for row in table["rows"] if row["row"] == "ours"}
    assert (rows["a"]["status"], rows["a"]["seeds"]) == ("failed", [0])
    assert rows["a"]["reason"] == "the loss of layer 1 became nan"
    assert (rows["b"]["status"], rows["b"]["seeds"]) == ("done", [0, 1])


def test_a_run_that_was_given_more_epochs_by_hand_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "my.npz"
    _write(path, 0)
    options = _options(tmp_path, str(path))
    key = reproduce(EXPERIMENT, options)["rows"][0]["finished"][0]
    folder = run_folder(options, key).path
    longer = replace(load_run(folder).checkpoint.config, epochs=3)
    run(longer, load_data(longer), folder, resume=True, extend=True)
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".lock"}
    row = reproduce(EXPERIMENT, options)["rows"][0]
    assert row["status"] == "failed"
    assert "holds a run of other settings or more epochs" in row["reason"]
    assert all((folder / name).read_bytes() == held for name, held in before.items())
