"""Frozen convolutions run once for all epochs of their head, and the head learns as if they ran in each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from spela.data import Dataset
from spela.experiments import make_config, run
from spela.layers import SpelaConv2d
from spela.training import frozen, load_checkpoint, read_evidence
from spela.training.records import RunFolder

CNN: dict[str, Any] = {
    "model": "cnn",
    "channels": (3, 4),
    "kernel_size": 3,
    "symmetric_dim": 9,
    "layers": (6, 5),
    "batch_size": 8,
    "dropout": 0.2,
    "epochs": 2,
    "head_epochs": 3,
}


@pytest.fixture(scope="module")
def data() -> Dataset:
    g = torch.Generator().manual_seed(2)
    y = torch.arange(64) % 4
    x = torch.randn(64, 1, 14, 14, generator=g) + y[:, None, None, None]
    return Dataset("little", x[:48], y[:48], x[48:], y[48:], 4, tuple("abcd"))


def _no_room(*_: object) -> torch.Tensor:
    raise OSError("no space left")


def _train(out: Path, data: Dataset, **changes: Any) -> list[dict[str, Any]]:
    run(make_config("little", "best", 3, **{**CNN, **changes}), data, out)
    return read_evidence(RunFolder(out)).records


def _samples_through_first_convolution(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    forward = SpelaConv2d.forward

    def counted(self: SpelaConv2d, x: torch.Tensor) -> torch.Tensor:
        if self.in_channels == 1:
            seen.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(SpelaConv2d, "forward", counted)
    return seen


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_head_learns_as_if_convolutions_ran_in_every_epoch(
    precision: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = _train(tmp_path / "once", data, precision=precision)
    monkeypatch.setattr(frozen, "_room", _no_room)
    anew = _train(tmp_path / "anew", data, precision=precision)
    for name in ("test_accuracy", "vote_accuracy", "learning_rate"):
        assert [r[name] for r in once] == [r[name] for r in anew], name
    losses = [torch.tensor([r["train_loss"] for r in records]) for records in (once, anew)]
    # In bf16, a frozen layer's mean loss is one of rounded batch losses, in another order of samples.
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    torch.testing.assert_close(losses[0], losses[1], rtol=tolerance, atol=tolerance)
    first, second = (
        load_checkpoint(tmp_path / name / "checkpoint.safetensors").tensors
        for name in ("once", "anew")
    )
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-4, atol=1e-6, msg=name)


def test_convolutions_run_once_for_all_epochs_of_the_head(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _samples_through_first_convolution(monkeypatch)
    counts = {}
    for epochs in (1, 4):
        seen.clear()
        _train(tmp_path / str(epochs), data, head_epochs=epochs)
        counts[epochs] = sum(seen)
    assert counts[1] == counts[4] > 0
    left = {file.name for file in (tmp_path / "4").iterdir()}
    assert left <= {
        ".lock",
        "checkpoint.safetensors",
        "config.json",
        "metrics.jsonl",
        "summary.json",
    }


@pytest.mark.parametrize("changes", [{"augment": True}, {"input_dropout": 0.1}])
def test_what_is_drawn_anew_runs_through_the_convolutions_in_every_epoch(
    changes: dict[str, Any], data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _samples_through_first_convolution(monkeypatch)
    counts = []
    for epochs in (1, 2):
        seen.clear()
        _train(tmp_path / str(epochs), data, head_epochs=epochs, **changes)
        counts.append(sum(seen))
    assert counts[1] - counts[0] >= len(data.train_y)
