"""What the tables of `bench` print is what was measured: each figure in its row and column."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from bench import distributed_table, estimator_table, paper_table, tuning_table
from spela.data import load_dataset
from spela.training import RunConfig, TrainingDivergedError, evaluate


def _rows(capsys: pytest.CaptureFixture[str], count: int) -> list[list[str]]:
    lines = capsys.readouterr().out.splitlines()[-count:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_classifiers_stand_beside_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Accuracy, log loss and seconds by seed.
    figures = {
        "SpelaClassifier": [(90.0, 0.5, 1.0), (92.0, 0.3, 3.0)],
        "MLPClassifier": [(89.0, 0.6, 2.0), (88.0, 0.8, 2.0)],
        "Again": [(90.5, 0.6, 2.0), (92.5, 0.8, 4.0)],
    }
    left = {name: iter(values) for name, values in figures.items()}
    monkeypatch.setattr(estimator_table, "samples", lambda *_: (np.eye(2), None, [0, 1], None))
    monkeypatch.setattr(
        estimator_table, "measure", lambda model, _: next(left[type(model).__name__])
    )
    monkeypatch.setattr(estimator_table, "MODELS", _models(list(figures)))
    monkeypatch.setattr(sys, "argv", ["table", "--data", "wine", "--seeds", "2"])
    estimator_table.main()
    assert _rows(capsys, 1) == [
        [
            "wine",
            "91.00 +- 1.41, 0.400, 2.000",
            "88.50 +- 0.71, 0.700, 2.000",
            "+2.50 +- 2.12",
            "91.50 +- 1.41, 0.700, 3.000",
            "-0.50 +- 0.00",
        ]
    ]


def _models(names: list[str]) -> dict[str, Any]:
    def build(name: str) -> Any:
        model = type(name, (), {"fit": lambda *_: None})
        return lambda *_: model()

    return {name: build(name) for name in names}


def test_processes_are_compared_by_medians_of_the_slowest_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = {name: [100.0 * (1 + place), 1e9, 1.0] for place, name in enumerate(_VARIANTS)}
    asked = {name: iter(values) for name, values in speeds.items()}
    losses = [1.0, 0.5]

    def ranks(name: str, _: Namespace) -> list[dict[str, Any]]:
        speed = next(asked[name])
        common = {"losses": losses, "training_bytes": 3e6, "state_bytes": 2e6}
        count = 2 if name.startswith("2") else 1
        return [{"samples_per_second": speed + rank, **common} for rank in range(count)]

    monkeypatch.setattr(distributed_table, "_run", ranks)
    monkeypatch.setattr(sys, "argv", ["table"])
    distributed_table.main()
    lines = capsys.readouterr().out.splitlines()[2:]
    for place, (name, line) in enumerate(zip(_VARIANTS, lines, strict=True)):
        memory = "; ".join(["3 (2)"] * (2 if name.startswith("2") else 1))
        assert line.startswith(name)
        assert line[len(name) :].split() == [
            f"{100 * (1 + place)}",
            f"{1 + place:.2f}",
            *memory.split(),
        ]
    with pytest.raises(SystemExit, match="not one process to the bit"):
        distributed_table._check({name: [1.0, 0.5 + place] for place, name in enumerate(_VARIANTS)})


_VARIANTS = list(distributed_table.VARIANTS)


def test_rates_stand_under_their_factor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: RunConfig, data: Any, folder: Path) -> dict[str, Any]:
        if config.recipe == "pepita" and config.lr > 0.2:
            raise TrainingDivergedError("far too fast")
        return {"test_accuracy": [0.1, config.lr]}

    monkeypatch.setattr(tuning_table, "run", run)
    monkeypatch.setattr(tuning_table, "RECIPES", ("best", "pepita"))
    monkeypatch.setattr(sys, "argv", ["table", "--data", "digits", "--samples", "100"])
    tuning_table.main()
    assert _rows(capsys, 2) == [
        ["best, 0.001", "0.03", "0.10", "0.30"],
        ["pepita, 0.1", "3.33", "10.00", "diverged"],
    ]


def test_the_paper_s_table_has_each_dataset_s_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept: dict[str, Any] = {}
    real = paper_table.run

    def watched(config: RunConfig, data: Any, folder: Path) -> dict[str, Any]:
        assert (config.epochs, config.layers) == (2, (12, 8))
        kept["summary"] = real(config, data, folder)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        kept["best"] = max(json.loads(line)["test_accuracy"][-1] for line in lines)
        return kept["summary"]

    def watched_evaluate(net: Any, x: Tensor, y: Tensor) -> Any:
        assert len(y) == len(load_dataset("digits").train_y)
        kept["training"] = evaluate(net, x, y)
        return kept["training"]

    monkeypatch.setattr(paper_table, "run", watched)
    monkeypatch.setattr(paper_table, "evaluate", watched_evaluate)
    row = "recipe=tmlr layers=(12,8)"
    paper_table.main([row, "--data", "digits", "--epochs", "2"])
    ((settings, by_layer, best, on_training),) = _rows(capsys, 1)
    shares = (kept["summary"]["test_accuracy"], [kept["best"]], kept["training"].accuracy)
    cells = [" / ".join(f"{100 * share:.2f}" for share in cell) for cell in shares]
    assert (settings, [by_layer, best, on_training]) == (row, cells)
