"""Diagnostics: figures by hand, alignment where it is known, and runs that they do not change."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from spela.baselines import BackpropSequential
from spela.cli import main
from spela.data import load_dataset
from spela.experiments import build_network, load_run, make_config
from spela.experiments import run as run_training
from spela.layers import SpelaBlock, SpelaLinear
from spela.network import SpelaSequential
from spela.reports.run_figures import diagnostic_figures, diagnostics_figure
from spela.training import Probe, diagnose

METHODS = ("best", "tmlr", "backprop", "ff", "pepita", "mono")
PROBE = Probe(torch.rand(40, 1, 8, 8), torch.arange(40) % 10)
TENS = torch.arange(30) % 10


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


def test_blocks_by_an_independent_computation() -> None:
    torch.manual_seed(0)
    x, target = torch.rand(12, 1, 6, 6), torch.arange(12) % 3
    first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(4, 5, 3), nn.ReLU())
    with torch.no_grad():
        first[1].bias.copy_(torch.tensor([1.0, 1.0, -100.0, 1.0]))  # one channel is dead
        first[1].running_mean.add_(0.1)
    inner = SpelaBlock(first, 3, x, readout=16, hidden=6, projection=7, scale=9.0)
    last = SpelaBlock(second, 3, first.eval()(x), readout=5, projection=None, scale=4.0)
    assert inner.head.hidden is not None
    inner.head.hidden.norm.running_var.fill_(0.3)

    def cosines(rows: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        return nn.functional.cosine_similarity(rows[:, None], vectors, dim=2)

    def margin(scores: torch.Tensor) -> float:
        rows = zip(scores.tolist(), target.tolist(), strict=True)
        gaps = [row.pop(label) - max(row) for row, label in rows]
        return sum(gaps) / len(gaps)

    y = first(x)
    z = nn.functional.adaptive_avg_pool2d(y, 2).flatten(1) @ inner.head.hidden.weight.T
    z = nn.functional.leaky_relu(z / (0.3 + 1e-5) ** 0.5, 0.01) @ inner.projection[0]
    answer = cosines(second(y).mean(dim=(2, 3)), last.vectors)
    ours = nn.functional.cross_entropy(9 * cosines(z, inner.vectors), target)
    whole = nn.functional.cross_entropy(4 * answer, target)
    local = torch.autograd.grad(ours, first[0].weight, retain_graph=True)[0].flatten()
    backprop = torch.autograd.grad(whole, first[0].weight)[0].flatten()

    rows = diagnose(SpelaSequential(inner, last), Probe(x, target))
    assert [row.loss for row in rows] == pytest.approx([ours.item(), whole.item()], rel=1e-5)
    assert rows[0].cosine_margin == pytest.approx(margin(cosines(z, inner.vectors)), abs=1e-6)
    assert rows[1].cosine_margin == pytest.approx(margin(answer), abs=1e-6)
    expected = nn.functional.cosine_similarity(local, backprop, dim=0).item()
    assert abs(expected) < 0.99
    assert rows[0].alignment == pytest.approx(expected, abs=1e-5)
    assert rows[1].alignment == pytest.approx(1, abs=1e-6)
    for row, body in zip(rows, (first, second), strict=True):
        assert row.weight_norm == pytest.approx(body[0].weight.norm().item(), rel=1e-6)
    dead = [(output.amax(dim=(0, 2, 3)) <= 0).double().mean().item() for output in (y, second(y))]
    assert dead[0] == 0.25
    assert [row.dead_units for row in rows] == dead


def test_a_body_with_several_weights_is_one_vector_and_tokens_have_their_features_as_units() -> (
    None
):
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x)).abs() * torch.tensor([1.0, -1.0])

    body, x = Tokens(), torch.randn(6, 5, 4)
    rows = diagnose(SpelaSequential(SpelaBlock(body, 3, x)), Probe(x, torch.arange(6) % 3))
    squares = body.one.weight.square().sum() + body.two.weight.square().sum()
    assert rows[0].weight_norm == pytest.approx(squares.sqrt().item(), rel=1e-6)
    assert rows[0].dead_units == 0.5
    assert rows[0].alignment == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "recipe", ["best", "supervised", "predsim", "classifier", "mono", "backprop"]
)
def test_networks_by_name_are_diagnosed_without_a_trace(recipe: str) -> None:
    blocks = {} if recipe == "backprop" else {"blocks": "3"}
    config = make_config("x", recipe, model="resnet", width=4, **blocks)
    net = build_network(config, (1, 8, 8), 10).train()
    with torch.no_grad():  # predsim's and mono's heads start at zero: no direction
        for name, value in net.named_parameters():
            if name.endswith("projection"):
                value.normal_(generator=torch.Generator().manual_seed(1))
    state = {name: value.clone() for name, value in net.state_dict().items()}
    rows = diagnose(net, PROBE)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    alignment = [row.alignment for row in rows]
    assert None not in alignment
    if recipe == "backprop":  # the first convolution, six residual blocks and the output layer
        assert alignment == pytest.approx([1] * 8, abs=1e-5)
        weights = [p for p in net[2].parameters() if p.dim() > 1]
        norm = torch.cat([w.flatten() for w in weights]).norm().item()
        assert rows[1].weight_norm == pytest.approx(norm, rel=1e-6)
        assert len({row.loss for row in rows}) == 1
        return
    assert len(rows) == 3
    net.eval()
    assert [row.loss for row in rows] == pytest.approx(
        net.local_losses(PROBE.x, PROBE.target).tolist(), rel=1e-5
    )
    assert (rows[0].cosine_margin is None) == (recipe in ("predsim", "classifier", "mono"))
    is_same_loss = recipe != "predsim"  # which has a similarity loss, too
    assert (abs(alignment[-1] - 1) < 1e-5) == is_same_loss
    assert alignment[0] < 0.999


@pytest.mark.parametrize("binarise", ["all", ""])
def test_binary_weights_agree_by_their_latent_ones(binarise: str) -> None:
    net = build_network(make_config("x", "best", layers=(16,), binarise=binarise), (1, 8, 8), 10)
    assert diagnose(net, PROBE)[0].alignment == pytest.approx(1, abs=1e-5)


def test_a_network_of_convolutions_alone_agrees_with_backprop_in_its_last() -> None:
    config = make_config(
        "x", "best", model="cnn", channels=(4, 6), kernel_size=3, symmetric_dim=12, layers=(),
        conv_objective="softmax",
    )  # fmt: skip
    rows = diagnose(build_network(config, (1, 20, 20), 10), Probe(torch.rand(30, 1, 20, 20), TENS))
    assert rows[1].alignment == pytest.approx(1, abs=1e-5)
    assert rows[0].alignment < 0.999


def test_a_fixed_layer_in_front_takes_no_layers_place() -> None:
    front = nn.Linear(64, 8)
    net = SpelaSequential(nn.Flatten(), front, SpelaLinear(8, 8, 10), SpelaLinear(8, 8, 10))
    rows = diagnose(net, PROBE)
    assert [row.loss for row in rows] == pytest.approx(
        net.local_losses(PROBE.x, PROBE.target).tolist(), rel=1e-6
    )


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
    assert len(list((out / "plots").glob("diagnostics-*.png"))) == 5
    assert "share of dead units by epoch" in (out / "report.html").read_text()
    files = list((out / "tensorboard").iterdir())
    content = b"".join(file.read_bytes() for file in files)
    for tag in (b"test_accuracy/layer_2", b"diagnostics/alignment/layer_1", b"vote_accuracy"):
        assert content.count(tag) == 2, tag  # one an epoch


def test_a_run_of_blocks_shows_its_diagnostics(tmp_path: Path) -> None:
    out = tmp_path / "run"
    blocks = "--data digits --model resnet --width 4 --blocks 3 --epochs 2 --batch-size 400"
    assert _main(f"train {blocks} --diagnostics --out {out}") == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [len(record["diagnostics"]) for record in records] == [3, 3]
    net = load_run(out).net.eval()
    rows = diagnose(net, Probe.of(load_dataset("digits"), 128))
    for row, noted in zip(rows, records[-1]["diagnostics"], strict=True):
        assert noted == pytest.approx(asdict(row), rel=1e-5)
    figure = diagnostics_figure(records)
    lines = [axes.get_lines() for axes in figure.axes]
    assert [len(drawn) for drawn in lines] == [3] * 5
    noted = [record["diagnostics"][1]["cosine_margin"] for record in records]
    assert list(lines[3][1].get_ydata()) == noted
    shown = diagnostic_figures(records, ["block 1", "block 2", "block 3"])
    for (_, _, alone), axes in zip(shown, figure.axes, strict=True):
        for line, name, other in zip(
            alone.axes[0].get_lines(),
            ("block 1", "block 2", "block 3"),
            axes.get_lines(),
            strict=True,
        ):
            assert line.get_label() == name
            assert list(line.get_ydata()) == list(other.get_ydata())
    assert "share of dead units by epoch" in (out / "report.html").read_text()


def test_without_tensorboard_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert _main(f"{TRAIN} {tmp_path / 'run'}") == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
