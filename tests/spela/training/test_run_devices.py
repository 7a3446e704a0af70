"""Runs on a device: they learn as on the CPU, resume in the same bits, and may be moved in between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from spela.data import Dataset
from spela.experiments import load_run, make_config, run
from spela.training import RunConfig, RunFolder, Trainer
from tests.devices import DEVICES, MOVES
from tests.spela.stopping import stop_before_epoch

CNN = {"model": "cnn", "channels": (8, 12), "kernel_size": 3}
RUNS: dict[str, dict[str, Any]] = {
    "best": {"recipe": "best", "layers": (48, 48), "lr": 0.01},  # Adam, dropout
    "best, bf16": {"recipe": "best", "layers": (48, 48), "lr": 0.01, "precision": "bf16"},
    "tmlr": {"recipe": "tmlr", "layers": (48, 10)},  # SGD
    "tmlr, bf16": {"recipe": "tmlr", "layers": (48, 10), "precision": "bf16"},
    "tmlr, scaled": {"recipe": "tmlr", "layers": (48, 10), "standardize": True},
    "cnn": {**CNN, "recipe": "cnn", "symmetric_dim": 12, "lr": 0.01},
    "cnn best": {**CNN, "recipe": "best"},
    "cnn best, bf16": {**CNN, "recipe": "best", "precision": "bf16"},
    "blocks": {"recipe": "best", "model": "vgg", "width": 8, "head_hidden": 24, "blocks": "3"},
    "backprop": {**CNN, "recipe": "backprop", "lr": 0.01},
}
# Sums are rounded in another order on a GPU, and Adam turns a gradient's sign into a whole step: losses and
# accuracies are near, not equal.
DRAWS_ON_ITS_DEVICE = ("best", "best, bf16")  # dropout: other numbers on a GPU


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Without TF32, which torch lets cuDNN have: both devices compute in float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Ten blurred patterns of 16 x 16 in noise, which every run of the table tells apart."""
    g = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 1, 4, 4, generator=g).repeat_interleave(4, 2).repeat_interleave(4, 3)
    y = torch.arange(600) % 10
    x = patterns[y] + 0.7 * torch.randn(600, 1, 16, 16, generator=g)
    names = tuple("abcdefghij")
    return Dataset("patterns", x[:400], y[:400], x[400:], y[400:], 10, names)


def _config(name: str, **changes: Any) -> RunConfig:
    settings = {"batch_size": 20, "epochs": 3, "schedule": "constant"}
    return make_config("patterns", **{**settings, **RUNS[name], **changes})


def _weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoint.safetensors")


def _losses(folder: Path) -> list[list[float]]:
    return [record["train_loss"] for record in RunFolder(folder).read_metrics()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", RUNS)
def test_a_run_learns_as_on_the_cpu(name: str, device: str, data: Dataset, tmp_path: Path) -> None:
    here = run(_config(name), data, tmp_path / "here", device=device)
    assert here["device"].startswith(device)
    assert min(here["test_accuracy"]) > 0.75  # chance: 0.1
    assert all(tensor.dtype != torch.bfloat16 for tensor in _weights(tmp_path / "here").values())
    if device == "cpu":
        return
    there = run(_config(name), data, tmp_path / "there")
    for ours, cpus in zip(here["test_accuracy"], there["test_accuracy"], strict=True):
        assert abs(ours - cpus) <= 0.05  # ten of 200 samples
    if name not in DRAWS_ON_ITS_DEVICE:
        first, cpus_first = _losses(tmp_path / "here")[0], _losses(tmp_path / "there")[0]
        assert first == pytest.approx(cpus_first, rel=0.05 if "bf16" in name else 0.01)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [name for name in RUNS if name != "tmlr, bf16"])
def test_a_stopped_run_goes_on_in_the_same_bits(
    name: str, device: str, data: Dataset, tmp_path: Path
) -> None:
    config = _config(name, epochs=2)
    run(config, data, tmp_path / "whole", device=device)
    with pytest.MonkeyPatch.context() as patch:
        stop_before_epoch(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run(config, data, tmp_path / "cut", device=device)
    run(config, data, tmp_path / "cut", device=device, resume=True)
    whole, cut = _weights(tmp_path / "whole"), _weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert [key for key in whole if not torch.equal(whole[key], cut[key])] == []
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "cut")


@pytest.mark.parametrize(("first", "then"), MOVES)
@pytest.mark.parametrize("name", ["best", "tmlr", "cnn", "blocks"])
def test_a_run_moves_to_another_device(
    name: str, first: str, then: str, data: Dataset, tmp_path: Path
) -> None:
    config = _config(name)
    whole = run(config, data, tmp_path / "whole", device=first)
    with pytest.MonkeyPatch.context() as patch:
        stop_before_epoch(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run(config, data, tmp_path / "moved", device=first)
    moved = run(config, data, tmp_path / "moved", device=then, resume=True)
    assert moved["device"].startswith(then)
    assert moved["epochs"] == 3
    stayed, went = _losses(tmp_path / "whole"), _losses(tmp_path / "moved")
    assert stayed[:2] == went[:2]
    if first == then:
        assert went == stayed
        assert moved["test_accuracy"] == whole["test_accuracy"]
    elif name not in DRAWS_ON_ITS_DEVICE:
        assert went[2] == pytest.approx(stayed[2], rel=0.02)
    for a, b in zip(moved["test_accuracy"], whole["test_accuracy"], strict=True):
        assert abs(a - b) <= 0.05
    # Its files are of no device: either one answers with them.
    x = data.test_x
    labels = {d: load_run(tmp_path / "moved", d).net.predict(x.to(d)).cpu() for d in (first, then)}
    assert (labels[first] == labels[then]).double().mean() > 0.99


@pytest.mark.parametrize("before", [False, True])
def test_convolutions_are_repeatable_while_a_run_trains(
    before: bool, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(self: Trainer, epoch: int) -> dict[str, Any]:
        seen.append(torch.backends.cudnn.deterministic)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run_epoch", look)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", before)
    with pytest.raises(KeyboardInterrupt):
        run(_config("cnn"), data, tmp_path / "run")
    assert seen == [True]
    assert torch.backends.cudnn.deterministic is before
