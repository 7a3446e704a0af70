"""Noise on the pixels of both splits, and wrong training labels."""

from __future__ import annotations

from typing import Any

from spela.experiments.declare import CIFAR10_COPY, Experiment, Row
from spela.experiments.suite.cnn import COLOUR, GREY
from spela.experiments.suite.mlp import LIKE_BEST

__all__ = ["NOISE"]

_WIDE = {"layers": (1024, 1024, 1024), "epochs": 10}
_GREY = (*GREY, "mnist")  # of linear layers
_LEVELS = (0.0, 0.2, 0.4)
_LABELS = {"noise": "pixel noise", "label_noise": "label noise"}
# Series: recipe, its settings, the series it is compared with.
_SERIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "best": ("best", {}, "backprop, settings of best"),
    "tmlr": ("tmlr", {}, "backprop"),
    "backprop": ("backprop", {}, ""),
    "backprop, settings of best": ("backprop", LIKE_BEST, ""),
}


def _sweep(setting: str) -> tuple[Row, ...]:
    label = _LABELS[setting]
    return tuple(
        Row(
            f"{series}, {label} {level:g}",
            recipe,
            settings={**_WIDE, **settings, setting: level},
            data=_GREY,
            rival=f"{rival}, {label} {level:g}" if rival else "",
            panel=label,
            series=series,
            x=level,
        )
        for series, (recipe, settings, rival) in _SERIES.items()
        for level in _LEVELS
    )


_CNN = tuple(
    Row(
        f"{recipe} {name}, pixel noise {level:g}",
        recipe,
        "cnn",
        {"noise": level, "epochs": 3, "resize": resize},
        data,
        rival="" if recipe == "backprop" else f"backprop {name}, pixel noise {level:g}",
        panel="pixel noise",
        series=f"{recipe} {name}",
        x=level,
    )
    for name, data, resize in (("cnn", GREY, 0), ("cnn 64x64", COLOUR, 64))
    for recipe in ("cnn", "best", "backprop")
    for level in _LEVELS
)

NOISE = Experiment(
    name="noise",
    title="Noise on pixels and on labels",
    data=(*_GREY, *COLOUR),
    rows=(
        *_sweep("noise"),
        *_sweep("label_noise"),
        *_CNN,
    ),
    source=f"the authors sweep pixel noise on their CNN; no figures of it are published; {CIFAR10_COPY}",
    panels={
        "pixel noise": "standard deviation of pixel noise",
        "label noise": "share of wrong labels",
    },
    main=("* 0.2",),
    quick={
        "mlp": {"max_width": 32},
        "cnn": {"max_width": 4, "resize": 20, "symmetric_dim": 12},
    },
)
