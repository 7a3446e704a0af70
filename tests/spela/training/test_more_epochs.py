"""A run is given more epochs: bit for bit the longer run where its schedule is, and said where it is not."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spela.cli import main
from spela.data import Dataset
from spela.experiments import load_run, make_config, run
from spela.process import threads_used
from spela.reports.card import as_markdown, as_text, describe
from spela.training import RunConfig, RunFolder, load_checkpoint, read_evidence
from spela.training.schedule import extension_note, learning_rate
from tests.spela.stopping import stop_before_epoch


def _config(**changes: Any) -> RunConfig:
    settings = {"layers": (8, 6), "batch_size": 8, "schedule": "constant", "epochs": 2}
    return make_config("little", "best", 3, **{**settings, **changes})


CNN = {"model": "cnn", "channels": (3,), "kernel_size": 3, "symmetric_dim": 9, "layers": (5,)}


@pytest.fixture(scope="module")
def data() -> Dataset:
    g = torch.Generator().manual_seed(2)
    y = torch.arange(40) % 4
    x = torch.randn(40, 1, 6, 6, generator=g) + y[:, None, None, None]
    return Dataset("little", x[:30], y[:30], x[30:], y[30:], 4, tuple("abcd"))


def _same_weights(a: Path, b: Path) -> bool:
    first, second = (load_file(path / "checkpoint.safetensors") for path in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def _figures(path: Path) -> list[dict[str, Any]]:
    records = read_evidence(RunFolder(path)).records
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"epochs": 5}),
        ({"schedule": "drop", "lr_drop": 1e-4, "epochs": 11}, {"epochs": 23}),
        ({**CNN, "head_epochs": 1}, {"head_epochs": 3}),
    ],
    ids=["constant", "drop", "head"],
)
def test_where_the_schedule_is_the_same_it_is_the_longer_run(
    before: dict, after: dict, data: Dataset, tmp_path: Path
) -> None:
    short, long = _config(**before), _config(**{**before, **after})
    run(short, data, tmp_path / "extended")
    summary = run(long, data, tmp_path / "extended", resume=True, extend=True)
    whole = run(long, data, tmp_path / "whole")
    assert _same_weights(tmp_path / "extended", tmp_path / "whole")
    assert _figures(tmp_path / "extended") == _figures(tmp_path / "whole")
    assert summary["extended_at"] == [short.total_epochs]
    assert "extended_at" not in whole
    assert f"the same as one run of {long.total_epochs} epochs" in extension_note(
        long, summary["extended_at"]
    )


def test_a_cosine_goes_on_at_its_place_in_the_longer_run(data: Dataset, tmp_path: Path) -> None:
    long = _config(schedule="cosine", epochs=5)
    out = tmp_path / "run"
    run(_config(schedule="cosine"), data, out)
    summary = run(long, data, out, resume=True, extend=True)
    rates = [record["learning_rate"] for record in read_evidence(RunFolder(out)).records]
    assert rates[1] == learning_rate(_config(schedule="cosine"), 1, 0, 4)
    assert rates[2:] == [learning_rate(long, epoch, 0, 4) for epoch in (2, 3, 4)]
    assert rates[2] > rates[1]
    assert (summary["epochs"], summary["extended_at"]) == (5, [2])
    assert json.loads((out / "config.json").read_text()) == long.to_dict()
    run(long, data, tmp_path / "whole")
    assert not _same_weights(out, tmp_path / "whole")
    card = describe(out)
    words = "not the result of one run of 5 epochs"
    assert words in as_text(card)
    assert words in as_markdown(card)
    # Twice more, and what is finished stays so.
    assert run(_config(schedule="cosine", epochs=6), data, out, resume=True, extend=True)[
        "extended_at"
    ] == [2, 5]
    again = run(_config(schedule="cosine", epochs=6), data, out, resume=True)
    assert (again["epochs"], again["extended_at"]) == (6, [2, 5])


def test_an_extension_that_is_killed_goes_on_in_the_same_bits(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = _config(schedule="cosine"), _config(schedule="cosine", epochs=5)
    for name in ("whole", "config", "epoch"):
        run(short, data, tmp_path / name)
    run(long, data, tmp_path / "whole", resume=True, extend=True)
    write_json = RunFolder.write_json

    def no_config(self: RunFolder, path: Path, value: Any) -> None:
        raise KeyboardInterrupt

    stops: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
        "config": lambda patch: patch.setattr(RunFolder, "write_json", no_config),
        "epoch": lambda patch: stop_before_epoch(patch, 3),
    }
    for name, stop in stops.items():
        out = tmp_path / name
        with monkeypatch.context() as patch:
            stop(patch)
            with pytest.raises(KeyboardInterrupt):
                run(long, data, out, resume=True, extend=True)
        assert not (out / "summary.json").exists()
        assert load_run(out).checkpoint.extended_at == (2,)
        assert load_checkpoint(out / "checkpoint.safetensors").config == long
        run(long, data, out, resume=True)
        assert _same_weights(out, tmp_path / "whole")
        assert _figures(out) == _figures(tmp_path / "whole")
        assert read_evidence(RunFolder(out)).summary["extended_at"] == [2]
    assert RunFolder.write_json is write_json


@pytest.mark.parametrize(
    ("before", "after", "extend"),
    [
        ({}, {"epochs": 5}, False),
        ({}, {"epochs": 1}, True),
        ({}, {"epochs": 5, "lr": 0.1}, True),
        ({**CNN, "head_epochs": 1}, {"epochs": 5}, True),
        ({**CNN, "head_epochs": 0}, {"head_epochs": 2}, True),
    ],
    ids=["not asked for", "fewer", "other settings", "under a head", "a new head"],
)
def test_what_is_no_longer_run_is_refused(
    before: dict, after: dict, extend: bool, data: Dataset, tmp_path: Path
) -> None:
    run(_config(**before), data, tmp_path / "run")
    held = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(ValueError, match="was started with other settings") as refused:
        run(_config(**{**before, **after}), data, tmp_path / "run", resume=True, extend=extend)
    # More epochs alone would be taken: they are not what is wrong.
    named = re.findall(r"[(,] ?(\w+) \S+ ->", str(refused.value))
    assert named == (["lr"] if "lr" in after else list(after))
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == held


def test_the_command_line_goes_on_only_when_epochs_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ["spela", "train", "--data", "digits", "--layers", "8", "--out", str(tmp_path / "run")]

    def spela(*more: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [*train, *more])
        with pytest.raises(SystemExit) as stop:
            main()
        return (int(stop.value.code or 0), *capsys.readouterr())

    assert spela("--epochs", "1")[0] == 0
    code, _, error = spela("--resume")  # the recipe has more epochs than this run was started with
    assert (code, error.count("\n")) == (2, 1)
    assert "epochs 1 -> " in error
    code, shown, _ = spela("--resume", "--epochs", "2")
    assert code == 0
    note = extension_note(make_config("digits", "best", epochs=2), [1])
    assert "given more epochs after epoch 1: the learning rate" in note
    assert "not the result of one run of 2 epochs" in note
    assert note in shown
    assert note in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("epochs", [1, 2], ids=["as it was", "longer"])
def test_a_run_goes_on_where_its_file_was_moved_and_only_with_the_same_samples(
    epochs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)).astype(np.float32), np.arange(60) % 3
    (tmp_path / "moved").mkdir()
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", x=x, y=y)
    np.savez("moved/other.npz", x=x + 1, y=y)

    def spela(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spela", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return (int(stop.value.code or 0), *capsys.readouterr())

    train = ("train", "--layers", "8", "--out", "run", "--data")
    assert spela(*train, "mine.npz", "--epochs", "1")[0] == 0
    before = load_file("run/checkpoint.safetensors")
    Path("mine.npz").rename("moved/mine.npz")
    code, _, error = spela("evaluate", "run")
    assert code == 2
    assert "run was trained on mine.npz, which is not here" in error
    assert spela("evaluate", "run", "--data", "moved/mine.npz")[0] == 0
    code, _, error = spela(*train, "moved/other.npz", "--epochs", str(epochs), "--resume")
    assert code == 2
    assert "data 'mine.npz' -> 'moved/other.npz'" in error
    assert spela(*train, "moved/mine.npz", "--epochs", str(epochs), "--resume")[0] == 0
    read = read_evidence(RunFolder("run"))
    assert len(read.records) == epochs
    assert load_run("run").checkpoint.config.data == "mine.npz"
    after = load_file("run/checkpoint.safetensors")
    same = all(torch.equal(after[key], before[key]) for key in before if key.endswith("weight"))
    assert same == (epochs == 1)


def test_a_finished_run_that_is_resumed_keeps_its_summary(data: Dataset, tmp_path: Path) -> None:
    first = run(_config(), data, tmp_path)
    before = (tmp_path / "summary.json").read_bytes()
    with threads_used(first["threads"] + 1):
        assert run(_config(), data, tmp_path, resume=True) == json.loads(before)
    assert (tmp_path / "summary.json").read_bytes() == before
