"""Runs whose network whitens its images first: what is learnt, kept, resumed and exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from spela import PatchWhitening
from spela.data import load_dataset
from spela.experiments import load_run, make_config, run
from spela.export import export_run

SETTINGS = {"model": "resnet", "blocks": "2", "width": 4, "whiten": True}


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        {**SETTINGS, "blocks": None, "recipe": "backprop"},
        {"model": "cnn", "channels": (4,), "kernel_size": 3, "layers": (16,), "whiten": True},
    ],
)
def test_every_kind_of_network_whitens_first(settings: dict, tmp_path: Path) -> None:
    digits = load_dataset("digits").subset(train=200, test=50)
    run(make_config("digits", epochs=1, **settings), digits, tmp_path / "run")
    net = load_run(tmp_path / "run").net
    expected = PatchWhitening(1).fit(digits.train_x)
    assert torch.equal(net[0].weight, expected.weight)
    assert torch.equal(net[0].bias, expected.bias)


def test_it_resumes_in_the_same_bits(tmp_path: Path) -> None:
    digits = load_dataset("digits").subset(train=200, test=50)
    settings = {**SETTINGS, "schedule": "constant"}
    run(make_config("digits", epochs=2, **settings), digits, tmp_path / "whole")
    run(make_config("digits", epochs=1, **settings), digits, tmp_path / "half")
    config = make_config("digits", epochs=2, **settings)
    run(config, digits, tmp_path / "half", resume=True, extend=True)
    whole, half = (
        load_file(tmp_path / out / "checkpoint.safetensors") for out in ("whole", "half")
    )
    assert all(torch.equal(whole[key], half[key]) for key in whole)


def test_exported_programs_take_raw_images(tmp_path: Path) -> None:
    digits = load_dataset("digits").subset(train=200, test=50)
    config = make_config("digits", epochs=1, **SETTINGS)
    run(config, digits, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    x = digits.test_x.float()
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, {"x": x.numpy()}), strict=True))
    for layer, scores in enumerate(load_run(tmp_path / "run").net.eval().layer_scores(x), start=1):
        np.testing.assert_allclose(found[f"scores.{layer}"], scores.detach().numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": (8,)}, "whiten is for convolutions: use --model cnn or"),
        ({"model": "resnet", "width": 4, "standardize": True}, "leave standardize out"),
    ],
)
def test_where_it_has_no_place_is_said(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_config("digits", whiten=True, **settings)
