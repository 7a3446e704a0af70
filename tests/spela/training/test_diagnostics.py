"""Diagnostics: figures by hand, alignment where it is known, and runs that they do not change."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from spela.baselines import BackpropSequential
from spela.cli import main
from spela.data import load_dataset
from spela.experiments import build_network, make_config
from spela.experiments import run as run_training
from spela.layers import SpelaLinear
from spela.network import SpelaSequential
from spela.training import Probe, diagnose

METHODS = ("best", "tmlr", "backprop", "ff", "pepita", "mono")
PROBE = Probe(torch.rand(40, 1, 8, 8), torch.arange(40) % 10)


@pytest.mark.parametrize("recipe", METHODS)
def test_every_method_is_diagnosed_without_a_trace(recipe: str) -> None:
    net = build_network(make_config("x", recipe, layers=(24, 20), dropout=0.2), (1, 8, 8), 10)
    net.train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    rows = diagnose(net, PROBE)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Linear)]
    assert len(rows) == len(weights) == (3 if recipe in ("backprop", "pepita") else 2)
    for row, weight in zip(rows, weights, strict=True):
        assert row.weight_norm == pytest.approx(weight.norm().item(), rel=1e-5)
        assert 0 <= row.dead_units < 1
        assert row.alignment is not None
        assert abs(row.alignment) <= 1 + 1e-9
        assert (row.cosine_margin is None) == (recipe not in ("best", "tmlr"))


@pytest.mark.parametrize("recipe", ["best", "backprop", "mono"])
def test_the_last_layer_agrees_with_backprop_where_its_loss_is_the_networks(recipe: str) -> None:
    net = build_network(make_config("x", recipe, layers=(24, 20)), (1, 8, 8), 10)
    alignment = [row.alignment for row in diagnose(net, PROBE)]
    assert alignment[-1] == pytest.approx(1, abs=1e-5)
    if recipe == "backprop":
        assert alignment == pytest.approx([1] * 3, abs=1e-5)
    else:
        assert alignment[0] is not None
        assert alignment[0] < 0.999


def test_margin_and_dead_units_by_hand() -> None:
    layer = SpelaLinear(2, 2, 2, activation="relu", vectors=torch.eye(2))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))  # the second unit is dead
    rows = diagnose(
        SpelaSequential(layer), Probe(torch.tensor([[3.0, 1.0], [2.0, 4.0]]), torch.tensor([0, 1]))
    )
    assert rows[0].dead_units == 0.5
    # Both outputs point to vector 0: margins 1 and -1.
    assert rows[0].cosine_margin == pytest.approx(0)
    net = BackpropSequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([-100.0, -100.0, 100.0]))
    assert diagnose(net, PROBE2)[0].dead_units == pytest.approx(2 / 3)


PROBE2 = Probe(torch.rand(6, 2), torch.arange(6) % 2)


def test_frozen_layers_stay_frozen() -> None:
    net = SpelaSequential(SpelaLinear(64, 8, 10), SpelaLinear(8, 8, 10))
    net[0].requires_grad_(False)
    rows = diagnose(net, Probe(PROBE.x.flatten(1), PROBE.target))
    assert rows[0].alignment is not None
    assert [p.requires_grad for p in net[0].parameters()] == [False, False]
    assert all(p.requires_grad for p in net[1].parameters())


def test_convolutions_are_diagnosed() -> None:
    config = make_config(
        "x", "best", model="cnn", channels=(4, 6), kernel_size=3, symmetric_dim=12, layers=(16,)
    )
    net = build_network(config, (1, 20, 20), 10)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    rows = diagnose(net, Probe(torch.rand(30, 1, 20, 20), torch.arange(30) % 10))
    assert len(rows) == 3
    assert all(row.cosine_margin is not None for row in rows)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("recipe", ["best", "ff"])
def test_a_run_ends_in_the_same_weights_with_diagnostics(recipe: str, tmp_path: Path) -> None:
    data = load_dataset("digits")
    for name, wanted in (("with", True), ("without", False)):
        config = make_config(
            "digits", recipe, layers=(32, 32), epochs=2, dropout=0.2, diagnostics=wanted
        )
        run_training(config, data, tmp_path / name)
    first, second = (
        load_file(tmp_path / name / "checkpoint.safetensors") for name in ("with", "without")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line)["diagnostics"] for line in lines]
    assert [len(record) for record in records] == [2, 2]
    assert records[1][0]["loss"] < records[0][0]["loss"]
    assert "diagnostics" not in (tmp_path / "without" / "metrics.jsonl").read_text()


def _main(arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["spela", *arguments.split()])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


TRAIN = "train --data digits --layers 16,16 --epochs 2 --diagnostics --tensorboard --out"


def test_diagnostics_are_plotted_and_written_for_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    assert _main(f"{TRAIN} {out}") == 0
    assert (out / "plots" / "diagnostics.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "report.html").read_text().count("data:image/png;base64,") == 4
    files = list((out / "tensorboard").iterdir())
    content = b"".join(file.read_bytes() for file in files)
    for tag in (b"test_accuracy/layer_2", b"diagnostics/alignment/layer_1", b"vote_accuracy"):
        assert content.count(tag) == 2, tag  # one an epoch


def test_without_tensorboard_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert _main(f"{TRAIN} {tmp_path / 'run'}") == 2
    assert "pip install 'spela[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
