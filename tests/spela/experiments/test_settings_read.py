"""Settings of a run reach its network and its optimizer."""

from __future__ import annotations

import pytest

from spela.experiments import make_config
from spela.experiments.models import build_network, build_optimizer
from spela.layers import SpelaConv2d, SpelaLinear


def test_layers_are_built_with_the_settings_of_the_run() -> None:
    settings = {
        "objective": "softmax",
        "scale": 3.0,
        "activation": "leaky_relu",
        "negative_slope": 0.3,
    }
    (layer,) = build_network(
        make_config("digits", layers=(12,), **settings), (1, 8, 8), 10
    ).local_layers
    assert isinstance(layer, SpelaLinear)
    for name in ("objective", "scale", "activation", "negative_slope"):
        assert getattr(layer, name) == settings[name]
    settings = {
        "conv_objective": "softmax",
        "conv_scale": 7.0,
        "symmetric_dim": 12,
        "projection_std": 0.5,
    }
    config = make_config(
        "digits", model="cnn", channels=(64,), layers=(), kernel_size=3, **settings
    )
    (layer,) = build_network(config, (1, 8, 8), 10).local_layers
    assert isinstance(layer, SpelaConv2d)
    assert (layer.objective, layer.scale, layer.projection.shape[2]) == ("softmax", 7.0, 12)
    assert layer.projection.std().item() == pytest.approx(0.5, rel=0.05)


def test_the_optimizer_has_the_settings_of_the_run() -> None:
    common = {"lr": 0.02, "weight_decay": 0.3}
    for optimizer, more in (("sgd", {"momentum": 0.5}), ("adam", {}), ("adamw", {})):
        config = make_config("digits", layers=(12,), optimizer=optimizer, **common, **more)
        (group,) = build_optimizer(config, build_network(config, (1, 8, 8), 10)).param_groups
        assert {name: group[name] for name in (*common, *more)} == {**common, **more}
