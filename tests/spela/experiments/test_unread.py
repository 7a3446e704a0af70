"""Settings that change nothing in a run: refused where they replace a recipe's, true of every one named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spela.experiments import make_config
from spela.experiments.models import build_network, build_optimizer
from spela.experiments.recipes import RECIPES
from spela.experiments.unread import unread_settings
from spela.training import RunConfig

OTHER = {
    "kernel_size": 4, "symmetric_dim": 12, "projection_std": 0.5, "groups": "3", "conv_objective": "cosine",
    "conv_scale": 7.0, "objective": "angular", "scale": 3.0, "vectors": "gaussian", "activation": "tanh",
    "negative_slope": 0.3, "init": "kaiming-normal", "bias_init": "uniform", "normalize_input": "unit",
    "dropout": 0.4, "momentum": 0.5, "readout": 64, "head_channels": 5, "head_hidden": 12, "projection": 24,
    "similarity": 0.3, "head_weight_decay": 0.5, "input_dropout": 0.3, "lr_drop": 0.2,
}  # fmt: skip
SHAPES = [
    ("mlp", {"layers": (12,)}),
    ("mlp", {"layers": (12, 12)}),
    ("cnn", {"channels": (4,), "layers": ()}),
    ("vgg", {"width": 4}),
    ("vgg", {"width": 4, "blocks": "conv"}),
    ("cifarnet", {"width": 4}),
    ("resnet", {"width": 4}),
    ("vit", {"width": 4}),
]


def _trained(config: RunConfig) -> tuple[list[float], list[float]]:
    """Losses of two steps, and all that the network then holds."""
    torch.manual_seed(0)
    side = 32 if config.blocks == "conv" else 16  # else its last map is one pixel
    net = build_network(config, (1, side, side), 10)
    optimizer = build_optimizer(config, net)
    x, y = torch.rand(12, 1, side, side), torch.arange(12) % 10
    losses = [loss for _ in range(2) for loss in net.local_step(x, y, optimizer).tolist()]
    return losses, [
        number for value in net.state_dict().values() for number in value.ravel().tolist()
    ]


@pytest.mark.parametrize("recipe", sorted({(m, r) for m, held in RECIPES.items() for r in held}))
def test_what_is_called_unread_is_not_read(recipe: tuple[str, str]) -> None:
    model, name = recipe
    shapes = [
        sizes
        for kind, sizes in SHAPES
        if kind == model and ("blocks" not in sizes or name == "best")
    ]
    assert shapes
    for sizes in shapes:
        config = make_config("digits", name, model=model, **sizes)
        unread = sorted(unread_settings(config).keys() & OTHER.keys())
        refused = ({"bias_init"} if config.method != "spela" else set()) | (
            {"normalize_input"} if config.network else set()
        )
        # All at once: what none of them reads, they do not read together.
        others = {setting: OTHER[setting] for setting in unread if setting not in refused}
        assert others
        assert _trained(replace(config, **others)) == _trained(config), others


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"momentum": 0.9},
            "momentum 0.9 would change nothing in this run, it is of optimizer sgd",
        ),
        (
            {"kernel_size": 3},
            "kernel_size 3 would change nothing in this run, it is of convolutions",
        ),
        ({"recipe": "ff", "objective": "log", "scale": 5.0}, "scale 5.0 .* not of ff"),
        ({"recipe": "tmlr", "scale": 5.0}, "scale 5.0 .* it is of objective softmax"),
        ({"negative_slope": 0.3}, "negative_slope 0.3 .* of activation leaky_relu or prelu"),
        ({"layers": (9,), "dropout": 0.5}, "dropout 0.5 .* of layers after the first"),
        (
            {"model": "vit", "head_channels": 9},
            "head_channels 9 .* of networks whose parts give maps",
        ),
        ({"model": "cnn", "activation": "tanh"}, "activation 'tanh' .* of a head"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_config("digits", **settings)  # type: ignore[arg-type]


def test_a_setting_that_is_the_recipe_s_own_may_be_said() -> None:
    assert make_config("digits", momentum=0.0, kernel_size=5) == make_config("digits")
    assert make_config("digits", optimizer="sgd", momentum=0.9).momentum == 0.9
