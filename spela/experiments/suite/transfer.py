"""Heads on the features of a pretrained backbone, at several test shares."""

from __future__ import annotations

from typing import Any

from spela.experiments.declare import CIFAR10_COPY, LAST, Experiment, Row
from spela.experiments.recipes import RECIPES

__all__ = ["TRANSFER"]

# Top-1 at 10, 50 and 99 % test share on ResNet-50 features.
_PUBLISHED = {
    "transfer": {
        "aircraft": (32.6, 26.3, 5.6),
        "cifar10": (83.8, 82.5, 69.0),
        "flowers102": (85.8, 84.0, 60.5),
        "pets": (90.8, 87.7, 35.0),
    },
    "transfer-backprop": {
        "aircraft": (29.6, 26.3, 4.8),
        "cifar10": (81.9, 80.4, 68.7),
        "flowers102": (83.4, 78.4, 20.8),
        "pets": (86.7, 84.9, 48.5),
    },
}
# Features of another backbone, where ResNet-50's are not at hand.
_ALSO_BESIDE = {"cifar10": ("efficientnet-lite0",)}
# 10,000 training and 2,000 test samples at 96 pixels, 50 epochs, mean of 3 seeds.
_MEASURED = {
    "transfer": {"fashion-mnist-efficientnet-lite0": {LAST: 85.4}},
    "transfer-backprop": {"fashion-mnist-efficientnet-lite0": {LAST: 86.7}},
}
_SHARES = (0.1, 0.5, 0.99)
# From 50 classes on the authors take a wider last layer.
_MANY = {
    f"{data}-*": {"layers": (1024, 1024)}
    for data in ("aircraft", "cifar100", "flowers102", "food101")
}
# What `transfer-best` has and the plain head has not.
_LIKE_BEST = {
    name: RECIPES["mlp"]["transfer-best"][name]
    for name in (
        "batch_size",
        "activation",
        "normalize_input",
        "input_dropout",
        "dropout",
        "schedule",
    )
}
# Series: recipe, its settings, the series it is compared with.
_SERIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "transfer": ("transfer", {}, "transfer-backprop"),
    "transfer-best": ("transfer-best", {}, "transfer-backprop, settings of transfer-best"),
    "transfer-backprop": ("transfer-backprop", {}, ""),
    "transfer-backprop, settings of transfer-best": ("transfer-backprop", _LIKE_BEST, ""),
}


def _published(recipe: str, share: float) -> dict[str, dict[int, float]]:
    rows = _PUBLISHED.get(recipe, {})
    return {
        f"{data}-{backbone}": {LAST: row[_SHARES.index(share)]}
        for data, row in rows.items()
        for backbone in ("resnet50", *_ALSO_BESIDE.get(data, ()))
    }


def _row(series: str, share: float | None) -> Row:
    recipe, settings, rival = _SERIES[series]
    suffix = "" if share is None else f", test share {share:g}"
    return Row(
        series + suffix,
        recipe,
        settings=settings if share is None else {**settings, "test_share": share},
        published={} if share is None else _published(series, share),
        measured=_MEASURED.get(series, {}) if share is None else {},
        other_inputs=tuple(
            f"{data}-{name}" for data, names in _ALSO_BESIDE.items() for name in names
        ),
        by_data=_MANY,
        rival=rival and rival + suffix,
        panel="own split" if share is None else "share",
        series=series,
        x=share,
    )


TRANSFER = Experiment(
    name="transfer",
    title="Transfer: heads on pretrained features",
    data=("features",),
    rows=tuple(_row(series, share) for series in _SERIES for share in (None, *_SHARES)),
    source=(
        "the released transfer notebooks, ResNet-50 features of all samples (files named "
        "DATA-resnet50.safetensors); of CIFAR-10 they also stand beside EfficientNet-Lite0 features, which "
        "are of another backbone and image size. Measured: EfficientNet-Lite0 at 96 pixels, 10,000 training "
        "and 2,000 test samples of Fashion-MNIST (a file named "
        "fashion-mnist-efficientnet-lite0.safetensors), 50 epochs, 3 seeds. A file's name does not say which "
        "samples and how many pixels it was made with: with others than these a "
        f"difference says nothing; {CIFAR10_COPY}"
    ),
    panels={"own split": "", "share": "test share of all samples"},
    main=(*_SERIES, "*share 0.99"),
    headline=(
        ("transfer, test share 0.99", "cifar10-efficientnet-lite0"),
        ("transfer-best", "fashion-mnist-efficientnet-lite0"),
    ),
    quick={"mlp": {"max_width": 32}},
)
