"""Runs whose network scales its own input: what it learns, resumes, predicts and exports of raw features."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_breast_cancer
from torch import nn

from spela import RowNorm, SpelaLinear, Standardize
from spela.cli import main
from spela.cli.running import scaling_note
from spela.data import Dataset, load_dataset
from spela.experiments import build_network, load_run, make_config, network_for, run

SETTINGS = {"layers": (64, 64), "epochs": 8, "batch_size": 20}


@pytest.fixture(scope="module")
def cancer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty features, from thousandths to thousands."""
    x, y = load_breast_cancer(return_X_y=True)
    file = tmp_path_factory.mktemp("data") / "cancer.npz"
    np.savez(file, x=x.astype(np.float32), y=y)
    return file


@pytest.fixture(scope="module")
def trained(cancer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "cancer"
    config = make_config(str(cancer), standardize=True, **SETTINGS)
    run(config, load_dataset(cancer), out)
    return out


def _spela(patch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    patch.setattr(sys, "argv", ["spela", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_uneven_features_are_learnt_and_said(cancer, trained, tmp_path, monkeypatch, capsys):
    plain = (*("train", "--data", cancer, "--out", tmp_path), *("--layers", "64,64"))
    assert _spela(monkeypatch, *plain, "--epochs", "8", "--batch-size", "20") == 0
    assert "try --standardize" in capsys.readouterr().out
    accuracy = [
        json.loads((out / "summary.json").read_text())["test_accuracy"][-1]
        for out in (tmp_path, trained)
    ]
    assert accuracy[1] > 0.95 > accuracy[0]
    options = ("--epochs", "8", "--batch-size", "20", "--standardize")
    again = ("train", "--data", cancer, "--out", tmp_path / "again", "--layers", "64,64")
    assert _spela(monkeypatch, *again, *options) == 0
    assert "standardize" not in capsys.readouterr().out
    states = [load_file(out / "checkpoint.safetensors") for out in (tmp_path / "again", trained)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_it_is_the_run_of_data_scaled_before(cancer: Path, tmp_path: Path) -> None:
    raw = load_dataset(cancer)
    scale = Standardize(raw.sample_shape).fit(raw.train_x)
    before = Dataset(
        "scaled",
        *(scale(raw.train_x), raw.train_y, scale(raw.test_x), raw.test_y),
        num_classes=2,
        class_names=raw.class_names,
    )
    settings = {**SETTINGS, "normalize_input": "none"}
    run(make_config("scaled", **settings), before, tmp_path / "before")
    run(make_config("raw", standardize=True, **settings), raw, tmp_path / "inside")
    ours, theirs = (
        {
            k: v
            for k, v in load_file(tmp_path / out / "checkpoint.safetensors").items()
            if "weight" in k
        }
        for out in ("inside", "before")
    )
    assert len(ours) == len(theirs) > 0
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True))


def test_a_scaled_row_keeps_its_length() -> None:
    for standardize, before_first in ((True, SpelaLinear), (False, RowNorm)):
        config = make_config("raw", layers=(8, 8), standardize=standardize)
        kinds = [type(module) for module in build_network(config, (5,), 2)]
        assert kinds[kinds.index(nn.Flatten) + 1] is before_first
        assert kinds.count(RowNorm) == (1 if standardize else 2)
        rival = build_network(
            make_config("raw", "mono", layers=(8, 8), standardize=standardize), (5,), 2
        )
        assert [type(module) for module in rival].count(RowNorm) == kinds.count(RowNorm)


def test_a_norm_that_no_layer_would_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"normalize_input 'unit' would change nothing"):
        make_config("raw", layers=(8,), standardize=True, normalize_input="unit")


def test_it_resumes_in_the_same_bits(cancer: Path, trained: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "schedule": "constant", "standardize": True}
    data = load_dataset(cancer)
    run(make_config(str(cancer), **settings), data, tmp_path / "whole")
    run(make_config(str(cancer), **{**settings, "epochs": 3}), data, tmp_path / "half")
    whole = make_config(str(cancer), **settings)
    run(whole, data, tmp_path / "half", resume=True, extend=True)
    states = [load_file(tmp_path / out / "checkpoint.safetensors") for out in ("whole", "half")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("what", ["inference", "train-step"])
def test_exported_programs_take_raw_features(what, cancer, trained, tmp_path, monkeypatch):
    file = tmp_path / "net.onnx"
    arguments = ("export", trained, "--what", what, "--out", file)
    # A step from the weights it started with still scales as the data asks.
    untrained = ("--untrained",) if what == "train-step" else ()
    assert _spela(monkeypatch, *arguments, *untrained) == 0
    session = onnxruntime.InferenceSession(file)
    data = load_dataset(cancer)
    feed = {"x": data.test_x.numpy()}
    net = load_run(trained).net
    if what == "train-step":
        net = network_for(load_run(trained).checkpoint.config, data).eval()
        feed |= {"target": data.test_y.numpy(), "lr": np.array(0.001, np.float32)}
        for value in session.get_inputs():
            if value.name.startswith("mask."):
                feed[value.name] = np.ones((len(data.test_y), 64), np.float32)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, feed), strict=True))
    expected = net.layer_scores(data.test_x)
    for layer, scores in enumerate(expected, start=1):
        np.testing.assert_allclose(found[f"scores.{layer}"], scores.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "cnn", "channels": (4,), "kernel_size": 3, "layers": (16,)},
        {"model": "cnn", "recipe": "backprop", "channels": (4,), "kernel_size": 3, "layers": (16,)},
        {"recipe": "mono", "layers": (16,)},
        {"model": "vit", "blocks": "2", "width": 8},
        {"model": "vit", "recipe": "backprop", "width": 8},
    ],
)
def test_every_kind_of_network_scales_first(settings: dict, tmp_path: Path) -> None:
    digits = load_dataset("digits").subset(train=200, test=50)
    config = make_config("digits", epochs=1, standardize=True, **settings)
    run(config, digits, tmp_path)
    net = load_run(tmp_path).net
    assert isinstance(net[0], Standardize)
    assert float(net[0](digits.train_x).mean()) == pytest.approx(0, abs=1e-5)
    assert float(net[0](digits.train_x).std(correction=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("recipe", ["ff", "pepita"])
def test_methods_that_change_their_input_refuse(recipe: str) -> None:
    with pytest.raises(ValueError, match="leave standardize out"):
        make_config("digits", recipe, standardize=True)


def test_the_note_is_of_data_that_need_it() -> None:
    config = make_config("mine.npz")
    x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    y = torch.arange(100) % 2

    def note(samples: torch.Tensor) -> str:
        parts = (samples, y, samples, y)
        return scaling_note(config, Dataset("mine", *parts, num_classes=2, class_names=("0", "1")))

    assert note(x) == note(50 * x) == note(x + 5) == ""
    signs = torch.tensor([[1.0], [-1.0]]).expand(2, 5).repeat(50, 1)
    assert "1000 deviations from zero" in note(signs + 1000)
    assert "varies 500 times as much" in note(signs * torch.tensor([1, 1, 500, 1, 1]))
    config = make_config("mine.npz", "ff")  # which would refuse what the note says
    assert note(signs + 1000) == ""
