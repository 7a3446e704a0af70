"""A run's settings for its page: what it changed in its recipe, and the rest that it reads."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from spela.experiments import RECIPES
from spela.experiments.unread import unread_settings
from spela.training import RunConfig

__all__ = ["changed_settings", "other_settings"]


def changed_settings(config: RunConfig) -> list[tuple[str, Any, Any]]:
    """The settings that differ from the recipe's.

    Args:
        config: The run's settings.

    Returns:
        Name, value, and the recipe's value; all that the run reads, with None, if it knows no such recipe.
    """
    values, usual = _read(config), _of_recipe(config)
    if usual is None:
        return [(name, value, None) for name, value in values.items()]
    return [
        (name, value, usual[name])
        for name, value in values.items()
        if name in usual and value != usual[name]
    ]


def other_settings(config: RunConfig) -> list[tuple[str, Any]]:
    """The settings that are the recipe's, without those that change nothing in this run."""
    changed = {name for name, *_ in changed_settings(config)}
    return [(name, value) for name, value in _read(config).items() if name not in changed]


def _of_recipe(config: RunConfig) -> dict[str, Any] | None:
    model = config.network or ("cnn" if config.channels else "mlp")
    recipe = RECIPES[model].get(config.recipe)
    if recipe is None:
        return None
    # Without linear layers there is no head to train, whatever the recipe says.
    return recipe if config.layers else {**recipe, "head_epochs": 0}


def _read(config: RunConfig) -> dict[str, Any]:
    unread = unread_settings(config)
    skipped = ("data", "recipe", "seed")  # they stand at the top of the page
    return {k: v for k, v in asdict(config).items() if k not in unread and k not in skipped}
