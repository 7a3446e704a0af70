"""Convolution networks as a user trains them: the command line, the head, resizing, noise."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from spela.cli import main
from spela.data import load_dataset
from spela.experiments import build_network, load_run, make_config
from spela.layers import SpelaConv2d, SpelaLinear
from spela.training import RunFolder, batch_statistics, evaluate
from tests.spela.stopping import stop_before_epoch

CNN = (
    "train --data digits --model cnn --resize 16 --channels 6,8 --kernel-size 3 --symmetric-dim 12 "
    "--groups 2:6 --threads 1"
)


def _run(arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    argv, sys.argv = sys.argv, ["spela", *arguments.split()]
    try:
        main()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.argv = argv
    out, err = capsys.readouterr()
    return code, out, err


def _summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_the_head_learns_after_the_convolutions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    code, text, _ = _run(
        f"{CNN} --recipe cnn --channels 12,16 --lr 0.01 --epochs 2 --head 10 --head-epochs 2 --out {out}",
        capsys,
    )
    assert code == 0
    assert "batch norm" in text
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 4
    norms = [record["weight_norm"] for record in records]
    assert norms[0][:2] != norms[1][:2] == norms[2][:2] == norms[3][:2]  # the convolutions
    assert norms[0][2] == norms[1][2] != norms[2][2] != norms[3][2]  # the head
    # Frozen: batch norm's running statistics stay too, so the layers' answers do.
    assert records[1]["test_accuracy"][:2] == records[3]["test_accuracy"][:2]
    summary = _summary(out)
    assert min(summary["test_accuracy"]) > 0.4  # chance: 0.1
    assert len(summary["test_accuracy_batch_statistics"]) == 3
    code, text, _ = _run(f"evaluate {out} --threads 1", capsys)
    assert code == 0
    assert f"layer 3: {100 * summary['test_accuracy'][2]:.2f} %" in text


def _convolutions(recipe: str, **settings: Any) -> list[SpelaConv2d]:
    config = make_config("digits", recipe, model="cnn", kernel_size=3, symmetric_dim=9, **settings)
    net = build_network(config, (1, 16, 16), 10)
    return [module for module in net if isinstance(module, SpelaConv2d)]


def test_the_released_recipe_shares_the_class_groups() -> None:
    first, second = _convolutions("cnn", channels=(32, 32))
    assert torch.equal(first.grouping, second.grouping)
    wide, narrow = _convolutions("cnn", channels=(8, 32))
    assert torch.equal(wide.grouping, narrow.grouping[:8])
    for own in (
        _convolutions("cnn", channels=(32, 32), share_groups=False),
        _convolutions("best", channels=(32, 32)),
    ):
        assert not torch.equal(own[0].grouping, own[1].grouping)


def test_the_command_line_says_whose_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"{CNN} --recipe cnn --lr 0.01 --epochs 1"
    for option, same in (("", True), ("--own-groups", False)):
        out = tmp_path / f"run{option}"
        assert _run(f"{command} {option} --out {out}", capsys)[0] == 0
        first, second = (
            layer.grouping for layer in load_run(out).net if hasattr(layer, "grouping")
        )
        assert torch.equal(first, second[:6]) == same
        assert json.loads((out / "config.json").read_text()).get("share_groups", False) == same
    code, _, err = _run(f"train --data digits --share-groups --out {tmp_path / 'mlp'}", capsys)
    assert code != 0
    assert "share_groups is for SPELA's convolutions" in err


def test_a_stopped_head_goes_on_with_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"{CNN} --recipe cnn --lr 0.01 --epochs 1 --head 10 --head-epochs 2 --out"
    assert _run(f"{command} {tmp_path / 'whole'}", capsys)[0] == 0
    folder = RunFolder(tmp_path / "whole")
    seconds = [record["seconds"] for record in folder.read_metrics()]
    summary = folder.read_json(folder.summary)
    assert summary["seconds_per_epoch"] == seconds[0]  # the convolutions' only epoch
    assert summary["seconds_per_head_epoch"] == (seconds[1] + seconds[2]) / 2
    stop_before_epoch(monkeypatch, 2)
    assert _run(f"{command} {tmp_path / 'stopped'}", capsys)[0] == 130
    monkeypatch.undo()
    assert _run(f"{command} {tmp_path / 'stopped'} --resume", capsys)[0] == 0
    whole, stopped = (load_run(tmp_path / name).net for name in ("whole", "stopped"))
    for (name, now), then in zip(
        stopped.state_dict().items(), whole.state_dict().values(), strict=True
    ):
        assert torch.equal(now, then), name


def test_best_trains_all_layers_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert _run(f"{CNN} --epochs 8 --head 32 --noise 0.05 --out {out}", capsys)[0] == 0
    assert min(_summary(out)["test_accuracy"]) > 0.4  # chance: 0.1


def test_the_backprop_rival_has_the_same_convolutions() -> None:
    ours = build_network(make_config("x", "best", model="cnn", channels=(6, 8)), (1, 28, 28), 10)
    rival = build_network(
        make_config("x", "backprop", model="cnn", channels=(6, 8)), (1, 28, 28), 10
    )
    convolutions = [m.weight.shape for m in ours if isinstance(m, SpelaConv2d)]
    assert convolutions == [m.weight.shape for m in rival if isinstance(m, torch.nn.Conv2d)]
    assert rival(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_the_authors_head_is_prelu_on_normalised_rows() -> None:
    net = build_network(make_config("x", "cnn", model="cnn", layers=(10,)), (1, 28, 28), 10)
    head = list(net)[-1]
    assert isinstance(head, SpelaLinear)
    assert (head.activation, head.objective) == ("prelu", "log")
    assert head.in_features == 128 * 4 * 4


def test_batch_statistics_leave_no_trace() -> None:
    net = build_network(make_config("x", "cnn", model="cnn", channels=(4,)), (1, 8, 8), 10)
    x = torch.rand(20, 1, 8, 8)
    net.train(False)
    before, state = net(x), {k: v.clone() for k, v in net.state_dict().items()}
    with batch_statistics(net):
        own = net(x)
    assert not torch.allclose(own, before)
    assert torch.equal(net(x), before)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_evaluation_takes_convolutions_in_smaller_batches() -> None:
    digits = load_dataset("digits")
    net = build_network(
        make_config("x", "cnn", model="cnn", channels=(4,), kernel_size=3), (1, 8, 8), 10
    )
    whole = evaluate(net, digits.test_x, digits.test_y)
    parts = evaluate(net, digits.test_x, digits.test_y, batch_size=7)
    assert whole.accuracy == parts.accuracy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model cnn --kernel-size 9", "too small"),
        (
            "--model cnn --channels 4 --kernel-size 6",
            "which must leave 2 of their pixels: use fewer",
        ),
        ("--model cnn --head-epochs 2", "set channels and layers"),
        ("--model cnn --groups many", "range such as 2:10"),
        ("--model cnn --channels 8,x", "--channels must be sizes"),
        ("--model cnn --recipe backprop --head 10 --head-epochs 1", "for SPELA"),
        ("--model forest", "mlp, cnn"),
        ("--recipe cnn", "--model cnn"),
        ("--channels 8", "--model cnn"),
        ("--noise -1", "noise must be 0 or more"),
        ("--resize -3", "resize must be 0 or more"),
    ],
)
def test_wrong_arguments_are_one_line_and_leave_nothing(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    code, _, error = _run(f"train --data digits {arguments} --out {out}", capsys)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_features_cannot_be_convolved_or_resized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    file = tmp_path / "rows.npz"
    x, y = np.random.default_rng(0).random((40, 6), np.float32), np.arange(40) % 4
    np.savez(file, x=x, y=y)
    for arguments, message in (("--model cnn", "need images"), ("--resize 8", "not images")):
        code, _, error = _run(f"train --data {file} {arguments} --out {tmp_path / 'r'}", capsys)
        assert code == 2
        assert message in error
