"""The sentences at a run's end that say what to try."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from spela.cli import main
from spela.cli.running import chance_note, few_steps_note
from spela.experiments import make_config
from spela.training import RunFolder


def test_a_run_that_learnt_nothing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("train", "--data", "digits", "--layers", "16", "--epochs", "3")
    for rate, learnt in (("1e30", False), ("1e-2", True)):
        out = tmp_path / rate
        monkeypatch.setattr("sys.argv", ["spela", *run, "--lr", rate, "--out", str(out)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None)
        said = "no layer is better than naming one class for all, 10.3 %: try another --lr"
        assert (said in capsys.readouterr().out) is not learnt


@pytest.mark.parametrize(("factor", "option"), [(1e5, "--standardize"), (1.0, "another --lr")])
def test_what_to_try_is_the_scale_of_the_features_where_that_is_at_fault(
    factor: float,
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(200, 8)).astype(np.float32), np.arange(200) % 2
    x[:, 0] *= factor
    np.savez(tmp_path / "own.npz", x=x, y=y)
    run = ("train", "--data", str(tmp_path / "own.npz"), "--layers", "16", "--epochs", "1")
    monkeypatch.setattr("sys.argv", ["spela", *run, "--lr", "1e30", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit):
        main()
    last = capsys.readouterr().out.split("test accuracy:")[1]
    assert f"naming one class for all, 50.0 %: try {option}\n" in last


def test_one_class_alone_asks_for_nothing() -> None:
    assert chance_note([1.0], torch.zeros(3, dtype=torch.int64)) == ""


def test_a_file_as_run_folder_is_refused_before_data_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file: give --out a folder"):
        RunFolder(tmp_path / "file").check_free()


def test_few_steps_of_a_head_are_told_apart() -> None:
    settings = {"model": "cnn", "channels": (8,), "layers": (10,), "batch_size": 100}
    both = make_config("digits", epochs=1, head_epochs=1, **settings)
    assert few_steps_note(both, 1437).startswith("only 15 steps: try more --epochs, such as 67,")
    head = make_config("digits", epochs=70, head_epochs=1, **settings)
    said = (
        "the head had only 15 steps: try more --head-epochs, such as 67, or a smaller --batch-size"
    )
    assert few_steps_note(head, 1437) == said
    assert few_steps_note(make_config("digits", epochs=70, head_epochs=70, **settings), 1437) == ""
    assert few_steps_note(make_config("digits", epochs=70, batch_size=100), 1437) == ""


@pytest.mark.parametrize(
    ("factor", "warned"), [(1.0, False), (3.0, False), (255.0, True), (1 / 255, True)]
)
def test_features_in_another_unit_than_those_learnt(
    factor: float,
    warned: bool,
    call: Callable[..., tuple[int, str, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    draw = np.random.default_rng(0)
    x, y = draw.uniform(size=(60, 5)).astype(np.float32), np.arange(60) % 2
    x[:, 3] = 0.5
    np.savez("mine.npz", x=x, y=y)
    np.savez("other.npz", x=factor * x[:30], y=y[:30])
    np.savez("few.npz", x=factor * x[:3])
    train = ["--data", "mine.npz", "--standardize", "--layers", "4", "--epochs", "1"]
    assert call("train", *train, "--out", "run")[0] == 0
    for command in (["evaluate", "run", "--data", "other.npz"], ["predict", "run", "other.npz"]):
        caplog.clear()
        assert call(*command)[0] == 0
        assert ("are they in the same unit?" in caplog.text) == warned
    caplog.clear()
    assert call("predict", "run", "few.npz")[0] == 0  # their spread says nothing
    assert call("evaluate", "run")[0] == 0
    assert caplog.text == ""
