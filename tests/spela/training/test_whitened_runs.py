"""Runs whose network whitens its images first: what is learnt, kept, resumed and exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file

from spela import PatchWhitening
from spela.data import load_dataset
from spela.experiments import build_network, load_run, make_config, run
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


def test_features_are_no_images_to_whiten() -> None:
    config = make_config("x", whiten=True, model="cnn", channels=(4,), kernel_size=3)
    with pytest.raises(ValueError, match=r"whiten needs images .* samples of shape \(30,\)"):
        build_network(config, (30,), 2)


def test_an_untrained_step_whitens_as_its_data_ask(tmp_path: Path) -> None:
    digits = load_dataset("digits").subset(train=200, test=50)
    settings = {"model": "cnn", "channels": (4,), "kernel_size": 3, "layers": (16,), "whiten": True}
    config = make_config("digits", epochs=1, **settings)
    run(config, digits, tmp_path / "run")
    file = tmp_path / "step.onnx"
    export_run(tmp_path / "run", file, what="train-step", untrained=True)
    stored = {tensor.name: tensor for tensor in onnx.load(file).graph.initializer}
    expected = PatchWhitening(1).fit(digits.train_x).weight.numpy()
    assert any(
        list(tensor.dims) == [4, 1, 2, 2]
        and np.array_equal(numpy_helper.to_array(tensor), expected)
        for tensor in stored.values()
    )
