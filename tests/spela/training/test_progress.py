"""What a listener is told while an epoch runs: from the first step on, also where steps are slow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from spela.data import Dataset
from spela.experiments import make_config, run

CONFIG = make_config("little", "best", 1, layers=(6, 5), epochs=2, batch_size=1)
STEPS = 70


class Listening:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, list[float]]] = []
        self.starts: list[tuple[int, int, int]] = []
        self.records: list[dict[str, Any]] = []

    def on_epoch_start(self, epoch: int, epochs: int, steps: int) -> None:
        assert len(self.records) == epoch - 1
        self.starts.append((epoch, epochs, steps))

    def on_progress(self, steps_done: int, losses: list[float]) -> None:
        self.told.append((steps_done, losses))

    def on_epoch_end(self, record: dict[str, Any]) -> None:
        self.records.append(record)


@pytest.fixture
def data() -> Dataset:
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(STEPS, 5, generator=g), torch.arange(STEPS) % 2
    return Dataset("little", x, y, x.clone(), y.clone(), 2, ("a", "b"))


def test_the_first_steps_are_told_at_once(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spela.training.loop.TELL_EVERY_S", 1e9)
    listener = Listening()
    run(CONFIG, data, tmp_path / "run", listener=listener)
    assert listener.starts == [(1, 2, STEPS), (2, 2, STEPS)]
    assert [steps for steps, _ in listener.told] == [1, 2, 4, 8, 16, 32, 50, STEPS, 50, STEPS]
    last = [losses for steps, losses in listener.told if steps == STEPS]
    assert last == [record["train_loss"] for record in listener.records]
    first, second = (losses for _, losses in listener.told[:2])
    assert len(first) == 2
    assert first != second


def test_slow_steps_are_told_one_by_one(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spela.training.loop.TELL_EVERY_S", 0.0)
    monkeypatch.setattr("spela.training.loop.steps_a_call", lambda *given: 1)
    listener = Listening()
    summary = run(CONFIG, data, tmp_path / "run", listener=listener)
    assert [steps for steps, _ in listener.told] == 2 * list(range(1, STEPS + 1))
    losses = dict(listener.told[:STEPS])
    # Between looks at the losses they are those of the last look.
    assert losses[3] == losses[2] != losses[4]
    alone = run(CONFIG, data, tmp_path / "alone")
    assert alone["train_loss"] == summary["train_loss"]
