"""Recipes of publications are as published."""

from __future__ import annotations

from typing import Any

import pytest

from spela.experiments.recipes import RECIPES, make_config
from spela.training import RunConfig


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 2.5}, "epochs must be int, got 2.5"),
        ({"epochs": "3"}, "epochs must be int, got '3'"),
        ({"batch_size": True}, "batch_size must be int, got True"),
        ({"lr": "fast"}, "lr must be float, got 'fast'"),
        ({"layers": 10}, "layers must be tuple"),
        ({"layers": (True,)}, "layers must be sizes"),
        ({"augment": 1}, "augment must be bool, got 1"),
        ({"wieght_decay": 0.1}, "did you mean 'weight_decay'"),
        ({"weights": 0.1}, "unknown setting 'weights'"),
    ],
)
def test_a_setting_of_another_type_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config("digits", **given)


def test_every_setting_can_be_replaced() -> None:
    settings = set(RunConfig.__dataclass_fields__) - {"data", "recipe", "seed"}
    assert all(
        set(recipe) == settings for recipes in RECIPES.values() for recipe in recipes.values()
    )


def test_a_whole_number_is_a_learning_rate() -> None:
    assert make_config("digits", lr=1).lr == 1


def test_dropout_does_not_meet_the_label_that_forward_forward_writes() -> None:
    with pytest.raises(ValueError, match="leave input_dropout out"):
        make_config("digits", "ff", input_dropout=0.5)
