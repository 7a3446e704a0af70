"""`spela info DIR` and its model card: true facts, and nothing of a file that a terminal would obey."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spela.cli import main
from spela.data import load_dataset
from spela.experiments import make_config, run
from spela.reports.card import as_markdown, as_text, describe


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "small|run"
    data = load_dataset("digits").subset(train=200, test=50)
    run(make_config("digits", layers=(16, 12), epochs=2, noise=0.1), data, out)
    return out


def test_the_facts_are_those_of_the_run(trained):
    card = describe(trained)
    summary = json.loads((trained / "summary.json").read_text())
    assert card.metrics["test_accuracy"] == summary["test_accuracy"]
    assert card.parameters == summary["parameters"] == 64 * 16 + 16 + 16 * 12 + 12
    assert card.finished
    text = as_text(card)
    tensors = load_file(trained / "checkpoint.safetensors")
    size = (trained / "checkpoint.safetensors").stat().st_size
    shown = " / ".join(f"{100 * a:.2f}" for a in summary["test_accuracy"])
    for fact in (
        "after 2 of 2 epochs",
        "recipe best, seed 0",
        "data: digits",
        "input: 1 x 8 x 8, features",
        "classes: 0, 1, 2",
        f"test accuracy of each layer, %: {shown}",
        "parameters: 1,244",
        f"{len(tensors)} tensors, {size:,} bytes",
        f"torch {torch.__version__}",
        "SpelaLinear(in_features=64, out_features=16",
    ):
        assert fact in text


def test_the_model_card_names_files_that_the_network_can_be_given(trained, tmp_path):
    assert f"spela predict '{trained}' image.png" in as_markdown(describe(trained))
    data = load_dataset("digits").subset(train=200, test=50)
    flat = {part: getattr(data, part).flatten(1) for part in ("train_x", "test_x")}
    config = make_config("digits", layers=(6,), epochs=1)
    run(config, dataclasses.replace(data, **flat), tmp_path / "flat")
    page = as_markdown(describe(tmp_path / "flat"))
    assert f"spela predict {tmp_path / 'flat'} samples.npz" in page


def test_the_model_card_has_metrics_limits_and_how_to_load(trained):
    page = as_markdown(describe(trained))
    record = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    row = f"| 2 | {100 * record['test_accuracy'][1]:.2f} | {record['train_loss'][1]:.4f} |"
    assert row in page
    assert "# Model card: small\\|run" in page
    assert "One run with one seed" in page
    assert "noise of standard deviation 0.1" in page
    assert "not finished" not in page
    code = page.split("```python")[1].split("```")[0]
    scope: dict[str, object] = {}
    exec(code, scope)
    assert scope["net"](torch.zeros(1, 1, 8, 8)).shape == (1, 10)  # type: ignore[operator]


def test_an_unfinished_run_says_so(trained, tmp_path):
    _copy(trained, tmp_path, epoch=1)
    page = as_markdown(describe(tmp_path))
    assert "Training is not finished" in page
    assert "No metrics" in page  # none beside this checkpoint


def test_control_characters_of_a_file_are_not_printed(trained, tmp_path):
    _copy(trained, tmp_path, class_names=["\x1b[2Jcat\n", "a|b<i>", *"abcdefgh"])
    card = describe(tmp_path)
    for text in (as_text(card), as_markdown(card)):
        assert "\x1b" not in text
        assert "?[2Jcat?" in text
    assert "a\\|b&lt;i>" in as_markdown(card)


def _copy(trained: Path, to: Path, **facts: object) -> None:
    path = trained / "checkpoint.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    metadata["run"] = json.dumps({**json.loads(metadata["run"]), **facts})
    save_file(load_file(path), to / "checkpoint.safetensors", metadata)


def _call(patch: pytest.MonkeyPatch, *arguments: str | Path) -> object:
    patch.setattr(sys, "argv", ["spela", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_the_command_writes_the_card_to_the_terminal_or_a_file(
    trained, tmp_path, monkeypatch, capsys
):
    assert _call(monkeypatch, "info", trained, "--card") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("# Model card")
    assert _call(monkeypatch, "info", trained, "--card", "--out", tmp_path / "card.md") == 0
    assert (tmp_path / "card.md").read_text() == shown.removesuffix("\n")
    for wrong in (("--card",), (trained, "--out", tmp_path / "x"), (tmp_path / "none",)):
        assert _call(monkeypatch, "info", *wrong) == 2
    assert not (tmp_path / "x").exists()


def test_names_of_classes_and_folders_are_text_in_the_card(trained, tmp_path):
    folder = tmp_path / 'run$(id)"a'
    data = load_dataset("digits").subset(train=50, test=20)
    names = ("![t](https://e.example/t.png)", "[click](javascript:0)", *"23456789")
    run(
        make_config("digits", layers=(8,), epochs=1),
        dataclasses.replace(data, class_names=names),
        folder,
    )
    page = as_markdown(describe(folder))
    assert "](" not in page.replace("]\\(", "")
    assert f"spela evaluate '{folder}'" in page
