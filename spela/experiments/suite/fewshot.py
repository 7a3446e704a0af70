"""Few samples, few epochs: the test split takes 10 to 99 % of training and test pooled."""

from __future__ import annotations

from typing import Any

from spela.experiments.declare import LAST, Experiment, Row

__all__ = ["FEWSHOT"]

# Batches of 2 over 8192 units are slow where the share is small.
_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99)
_OURS = {"mnist": 94.69, "kmnist": 88.91, "fashion-mnist": 80.51}
_THEIRS = {"mnist": 80.59, "kmnist": 71.24, "fashion-mnist": 71.68}
# Series: recipe, its settings, the series it is compared with, figures at 99 %.
_SERIES: dict[str, tuple[str, dict[str, Any], str, dict[str, float]]] = {
    "fewshot": ("fewshot", {}, "backprop, batch 2", _OURS),
    "best": ("best", {"epochs": 5}, "backprop", {}),
    "tmlr": ("tmlr", {"epochs": 5}, "", _OURS),
    "backprop": ("backprop", {"epochs": 5}, "", _THEIRS),
    # The same width, batches, learning rate and epochs as `fewshot`.
    "backprop, batch 2": (
        "backprop",
        {"layers": (8192,), "batch_size": 2, "lr": 3e-4, "epochs": 5},
        "",
        _THEIRS,
    ),
}


def _row(series: str, share: float) -> Row:
    recipe, settings, rival, figures = _SERIES[series]
    return Row(
        f"{series}, test share {share:g}",
        recipe,
        settings={**settings, "test_share": share},
        published={data: {LAST: value} for data, value in figures.items()} if share == 0.99 else {},
        rival=f"{rival}, test share {share:g}" if rival else "",
        panel="share",
        series=series,
        x=share,
    )


FEWSHOT = Experiment(
    name="fewshot",
    title="Few-shot: 5 epochs on what a test share leaves",
    data=("fashion-mnist", "mnist", "kmnist"),
    rows=tuple(_row(series, share) for series in _SERIES for share in _SHARES),
    source=(
        "the paper's few-shot table, 5 epochs, 99 % test share; which network and which split were used "
        "is not stated: here the pooled samples are shuffled by the run's seed"
    ),
    panels={"share": "test share of all samples"},
    main=("*share 0.99",),
    headline=(
        ("fewshot, test share 0.99", "mnist"),
        ("fewshot, test share 0.99", "fashion-mnist"),
    ),
    quick={"mlp": {"max_width": 32}},
)
