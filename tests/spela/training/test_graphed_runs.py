"""Runs whose steps are graphs: the files of a run without them, to the bit."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spela.cli import main
from spela.data import Dataset, load_dataset
from spela.experiments import make_config, run
from spela.training import RunConfig
from tests.spela.tape import Recorder, recorder

__all__ = ["recorder"]


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiled calls of small stacks, which a CPU takes where nothing records operators."""
    monkeypatch.setattr("spela.network.chain_of", lambda *given: None)
    monkeypatch.setattr("spela.layers.normalize.norm_fits", lambda x: False)
    monkeypatch.setattr("spela.training.loop.steps_a_call", lambda *given: 1)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    data = load_dataset("digits")
    return replace(data, train_x=data.train_x[:330], train_y=data.train_y[:330])  # 4 batches of 96


CONFIGS: dict[str, RunConfig] = {
    "best": make_config("digits", layers=(20, 12), epochs=3, batch_size=96),
    "tmlr": make_config("digits", "tmlr", layers=(20, 12), epochs=3, batch_size=96),
    "cnn": make_config(
        "digits", model="cnn", channels=(4,), kernel_size=3, symmetric_dim=6, layers=(10,),
        epochs=2, head_epochs=2, batch_size=96,
    ),
    "blocks": make_config(
        "digits", model="resnet", width=4, blocks="2", epochs=2, batch_size=96, augment=True,
    ),
    "backprop": make_config("digits", "backprop", layers=(20,), epochs=2, batch_size=96),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_of_graphs_is_the_run_without(
    name: str, digits: Dataset, recorder: Recorder, tmp_path: Path
) -> None:
    config = CONFIGS[name]
    summaries = {
        mode: run(config, digits, tmp_path / mode, graph=mode) for mode in ("off", "auto", "on")
    }
    # Each of four batches but the first ones and the shorter last of an epoch; a new graph for a head alone.
    assert len(recorder.tapes) == 2 * (1 + (config.head_epochs > 0))
    assert recorder.replays > 2
    states = {mode: load_file(tmp_path / mode / "checkpoint.safetensors") for mode in summaries}
    for mode in ("auto", "on"):
        for key in ("train_loss", "test_accuracy", "weight_norm"):
            assert summaries[mode][key] == summaries["off"][key]
        assert summaries[mode]["peak_memory_bytes"] == summaries["off"]["peak_memory_bytes"]
        assert states[mode].keys() == states["off"].keys()
        for key, value in states["off"].items():
            assert torch.equal(states[mode][key], value), key
        assert summaries[mode].pop("graph")
    assert "graph" not in summaries["off"]


def test_a_run_goes_on_from_its_files_with_a_graph_or_without(
    digits: Dataset, recorder: Recorder, tmp_path: Path
) -> None:
    whole = make_config("digits", layers=(20, 12), epochs=3, batch_size=96, schedule="constant")
    cut = make_config("digits", layers=(20, 12), epochs=1, batch_size=96, schedule="constant")
    run(whole, digits, tmp_path / "whole", graph="off")
    run(cut, digits, tmp_path / "cut", graph="on")
    run(whole, digits, tmp_path / "cut", resume=True, extend=True)
    states = [load_file(tmp_path / out / "checkpoint.safetensors") for out in ("whole", "cut")]
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())
    assert recorder.replays > 4


def _train(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["spela", "train", "--data", "digits", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


def test_the_option(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    for arguments, message in {
        ("--graph", "sometimes"): "unknown graph 'sometimes': use one of auto, on, off",
        (
            "--graph",
            "on",
            "--device",
            "cpu",
        ): "graph on needs a GPU, the run is on cpu: use auto or off",
        ("--graph", "on", "--parallel", "data"): "--graph on is for runs without --parallel",
    }.items():
        assert _train("--out", str(out), *arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not out.exists()
    assert _train("--out", str(out), "--graph", "off", "--layers", "12", "--epochs", "1") == 0
    assert "graph" not in json.loads((out / "config.json").read_text())
