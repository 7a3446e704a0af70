"""Recipes of publications are as published."""

from __future__ import annotations

from spela.experiments.recipes import RECIPES


def test_published_recipes_are_as_published() -> None:
    mlp, cnn = RECIPES["mlp"], RECIPES["cnn"]["cnn"]
    transfer = {
        "layers": (512, 64),
        "epochs": 50,
        "batch_size": 32,
        "init": "kaiming-normal",
        "lr": 1e-3,
    }
    assert mlp["transfer"].items() >= transfer.items()
    assert (
        mlp["pepita"].items()
        >= {"batch_size": 64, "dropout": 0.1, "momentum": 0.9, "lr": 0.1}.items()
    )
    assert (
        cnn.items() >= {"channels": (128, 128), "epochs": 15, "head_epochs": 10, "lr": 0.1}.items()
    )
