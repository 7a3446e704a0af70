"""Noise on the pixels of both splits, and wrong training labels."""

from __future__ import annotations

from spela.experiments.declare import Experiment, Row
from spela.experiments.suite.cnn import COLOUR, GREY

__all__ = ["NOISE"]

_WIDE = {"layers": (1024, 1024, 1024), "epochs": 10}
_LEVELS = (0.0, 0.2, 0.4)
_LABELS = {"noise": "pixel noise", "label_noise": "label noise"}


def _sweep(setting: str, levels: tuple[float, ...]) -> tuple[Row, ...]:
    label = _LABELS[setting]
    return tuple(
        Row(
            f"{recipe}, {label} {level:g}",
            recipe,
            settings={**_WIDE, setting: level},
            data=GREY,
            rival="" if recipe == "backprop" else f"backprop, {label} {level:g}",
            panel=label,
            series=recipe,
            x=level,
        )
        for recipe in ("best", "tmlr", "backprop")
        for level in levels
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
    data=(*GREY, *COLOUR),
    rows=(
        *_sweep("noise", _LEVELS),
        *_sweep("label_noise", _LEVELS),
        *_CNN,
    ),
    source="the authors sweep pixel noise on their CNN; no figures of it are published",
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
