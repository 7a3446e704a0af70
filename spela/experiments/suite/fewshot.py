"""Few samples, few epochs: the test split takes 10 to 99 % of training and test pooled."""

from __future__ import annotations

from spela.experiments.declare import LAST, Experiment, Row

__all__ = ["FEWSHOT"]

_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99)
_PUBLISHED = {
    "fewshot": {"mnist": 94.69, "kmnist": 88.91, "fashion-mnist": 80.51},
    "backprop": {"mnist": 80.59, "kmnist": 71.24, "fashion-mnist": 71.68},
}
_SETTINGS = {
    "fewshot": {},
    "best": {"epochs": 5},
    "tmlr": {"epochs": 5},
    "backprop": {"epochs": 5},
}

FEWSHOT = Experiment(
    name="fewshot",
    title="Few-shot: 5 epochs on what a test share leaves",
    data=("fashion-mnist", "mnist", "kmnist"),
    rows=tuple(
        Row(
            f"{recipe}, test share {share:g}",
            recipe,
            settings={**settings, "test_share": share},
            published={data: {LAST: value} for data, value in _PUBLISHED[recipe].items()}
            if share == 0.99 and recipe in _PUBLISHED
            else {},
            rival="" if recipe == "backprop" else f"backprop, test share {share:g}",
            panel="share",
            series=recipe,
            x=share,
        )
        for recipe, settings in _SETTINGS.items()
        for share in _SHARES
    ),
    source=(
        "the paper's few-shot table, 5 epochs, 99 % test share; which network and which split were used "
        "is not stated: here the pooled samples are shuffled by the run's seed"
    ),
    panels={"share": "test share of all samples"},
    main=("*test share 0.99",),
    quick={"mlp": {"max_width": 32}},
)
