"""The rivals as runs: they learn digits, are deterministic, resume to the same bits; a step's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spela.data import load_dataset
from spela.experiments import build_network, build_optimizer, load_run, make_config
from spela.experiments import run as run_training
from spela.reports.run import write_report
from spela.training import RunFolder
from spela.training.memory import peak_step_bytes
from tests.spela.stopping import stop_before_epoch

RIVALS = ("backprop-sgd", "ff", "pepita", "mono")
# Accuracy of the last layer in 8 epochs of 64-128-128 on digits, below three seeds; chance: 0.1.
LEARNS = {"backprop-sgd": 0.9, "ff": 0.75, "pepita": 0.88, "mono": 0.9}


def _run(recipe: str, out: Path, resume: bool = False) -> dict[str, Any]:
    config = make_config("digits", recipe, layers=(128, 128), epochs=8)
    return run_training(config, load_dataset("digits"), out, resume=resume)


@pytest.mark.parametrize("recipe", RIVALS)
def test_learns_digits_and_resumes_to_the_same_bits(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = _run(recipe, tmp_path / "whole")
    assert summary["test_accuracy"][-1] > LEARNS[recipe]
    assert summary["backend"] == "torch"
    assert summary["peak_memory_bytes"] > 4 * 128 * 64  # at least a gradient of the first layer
    stop_before_epoch(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        _run(recipe, tmp_path / "cut")
    monkeypatch.undo()
    resumed = _run(recipe, tmp_path / "cut", resume=True)
    for name in ("test_accuracy", "train_loss", "peak_memory_bytes"):
        assert resumed[name] == summary[name], name
    whole, cut = (load_run(tmp_path / name) for name in ("whole", "cut"))
    expected = whole.net.state_dict()
    for name, value in cut.net.state_dict().items():
        assert torch.equal(value, expected[name]), name
    if recipe == "ff":  # the one whose layers' outputs need a label
        page = write_report(RunFolder(tmp_path / "whole"), whole, load_dataset("digits"))
        assert "at its peak" in page.read_text()


def test_the_rivals_have_the_same_hidden_layers() -> None:
    shapes = []
    for recipe in ("best", "backprop", *RIVALS):
        net = build_network(make_config("x", recipe, layers=(20, 30)), (1, 8, 8), 10)
        linear = [m.weight.shape for m in net.modules() if isinstance(m, nn.Linear)]
        shapes.append(linear[:2])
    assert shapes == [[(20, 64), (30, 20)]] * len(shapes)


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("ff", {"normalize_input": "none"}, "needs normalize_input"),
        ("ff", {"activation": "gelu"}, "use relu"),
        ("mono", {"activation": "prelu"}, "use relu"),
    ],
)
def test_settings_that_a_rival_cannot_take(
    recipe: str, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(make_config("x", recipe, **settings), (1, 8, 8), 10)


def test_forward_forward_needs_room_for_the_label() -> None:
    with pytest.raises(ValueError, match="only 10"):
        build_network(make_config("x", "ff"), (10,), 10)


def test_convolutions_are_for_other_methods() -> None:
    with pytest.raises(ValueError, match="--model mlp"):
        make_config("x", "best", model="cnn", method="mono")


class _Sum(nn.Module):
    """Loss sum(w * x): its gradient is one more tensor of the size of w."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1000))


def test_memory_of_a_step_is_counted_by_hand() -> None:
    module = _Sum()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, foreach=False)
    x = torch.ones(1000)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = (module.w * x).sum()
        loss.backward()
        optimizer.step()
        return loss.detach()

    module.w.grad = torch.ones(1000)  # left by an earlier step: dropped first, not counted
    _, measured = peak_step_bytes(step, optimizer, x.device)
    # 4,000 bytes of gradient, and of w * x before it; a few scalars.
    assert 4000 <= measured <= 8100
    assert torch.allclose(module.w, torch.full((1000,), 0.9))
    _, again = peak_step_bytes(step, optimizer, x.device)
    assert again == measured


def test_memory_looks_into_our_own_ops() -> None:
    config = make_config("x", "best", layers=(64,))
    net = build_network(config, (1, 8, 8), 10)
    optimizer = build_optimizer(config, net)
    x, y = torch.rand(200, 1, 8, 8), torch.arange(200) % 10
    _, measured = peak_step_bytes(lambda: net.local_step(x, y, optimizer), optimizer, x.device)
    # The op returns loss and output only; inside it, output and its gradient live together.
    assert measured > 2 * 4 * 200 * 64
