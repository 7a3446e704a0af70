"""`--json` of info, evaluate and predict: the figures of the text, as one document."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

import spela
from spela.data import load_dataset

Call = Callable[..., tuple[int, str, str]]


def test_the_figures_are_those_of_the_text(call: Call) -> None:
    train = ["train", "--data", "digits", "--layers", "8,8", "--epochs", "1", "--out", "run"]
    assert call(*train)[0] == 0
    summary = json.loads(Path("run/summary.json").read_text())

    code, shown, error = call("evaluate", "run", "--exit-loss", "0.01", "--json")
    assert (code, error) == (0, "")
    found = json.loads(shown)
    assert (found["dataset"], found["split"], found["epoch"]) == ("digits", "test", 1)
    assert found["accuracy"] == summary["test_accuracy"]
    assert found["vote_accuracy"] == summary["vote_accuracy"]
    assert sum(found["early_exit"]["leaving"]) == found["samples"] == 360
    assert [len(row) for row in found["early_exit"]["thresholds"]] == [1, 1]

    np.savez("some.npz", x=load_dataset("digits").test_x[:5].numpy())
    lines = call("predict", "run", "some.npz")[1].splitlines()[1:]
    rows = json.loads(call("predict", "run", "some.npz", "--json")[1])
    assert lines == [
        f"{row['index']}\t{row['label']}\t{row['class']}\t{row['score']:.4f}" for row in rows
    ]

    facts = json.loads(call("info", "run", "--json")[1])
    assert facts["config"] == json.loads(Path("run/config.json").read_text())
    assert facts["finished"] is True
    assert facts["metrics"]["test_accuracy"] == summary["test_accuracy"]
    code, shown, error = call("info", "run", "--card", "--json")
    assert (code, shown) == (2, "")
    assert "leave one out" in error


def test_the_installation(call: Call) -> None:
    facts = json.loads(call("info", "--json", SPELA_BACKEND="reference")[1])
    assert facts["spela"] == spela.__version__
    assert "in force: reference (SPELA_BACKEND)" in facts["settings"]["device cpu"]
    assert "digits" in facts["datasets_here"]
