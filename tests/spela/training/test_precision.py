"""`precision`: bf16 products over float32 weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spela.data import load_dataset
from spela.experiments import load_run, make_config, run
from tests.devices import DEVICES


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("recipe", ["best", "tmlr"])
def test_bf16_trains_float32_weights_to_nearly_the_same_accuracy(
    tmp_path: Path, recipe: str, device: str
) -> None:
    data = load_dataset("digits")
    found = {}
    for precision in ("fp32", "bf16"):
        config = make_config("digits", recipe, layers=(64, 64), epochs=12, precision=precision)
        found[precision] = run(config, data, tmp_path / precision, device=device)
        weights = list(load_run(tmp_path / precision).net.parameters())
        assert all(p.dtype == torch.float32 for p in weights)
    assert found["bf16"]["train_loss"] != found["fp32"]["train_loss"]
    for ours, wide in zip(
        found["bf16"]["test_accuracy"], found["fp32"]["test_accuracy"], strict=True
    ):
        assert abs(ours - wide) < 0.02


@pytest.mark.parametrize("recipe", ["ff", "mono", "pepita", "backprop"])
def test_rivals_train_in_bf16_too(tmp_path: Path, recipe: str) -> None:
    data = load_dataset("digits").subset(train=200)
    losses = {}
    for precision in ("fp32", "bf16"):
        config = make_config("digits", recipe, layers=(24, 24), epochs=3, precision=precision)
        run(config, data, tmp_path / precision)
        loaded = load_run(tmp_path / precision)
        assert all(p.dtype == torch.float32 for p in loaded.net.parameters())
        losses[precision] = loaded.records[-1]["train_loss"]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_callers_autocast_changes_nothing(tmp_path: Path, precision: str) -> None:
    # Epochs after the first take several steps a call.
    data = load_dataset("digits").subset(train=500, test=100)
    config = make_config("digits", "tmlr", layers=(24, 24), epochs=3, precision=precision)
    plain = run(config, data, tmp_path / "plain")
    with torch.autocast("cpu", torch.bfloat16):
        cast = run(config, data, tmp_path / "cast")
    for name in ("train_loss", "weight_norm", "test_accuracy"):
        assert cast[name] == plain[name]
