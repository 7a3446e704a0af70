"""Grouped convolution layers that learn locally."""

from __future__ import annotations

from typing import Any

from spela.experiments.declare import CIFAR10_COPY, Experiment, Row, in_panel

__all__ = ["CNN", "COLOUR", "GREY", "HEAD", "authors", "on_images"]

_PUBLISHED = {
    "cifar10": {1: 40.6, 2: 49.1},
    "svhn": {1: 70.2, 2: 78.1},
}
_MEASURED = {"fashion-mnist": {1: 83.65, 2: 82.4}}
# The authors resize colour images to 64 x 64; Fashion-MNIST keeps its 28 x 28.
GREY = ("fashion-mnist",)
COLOUR = ("cifar10", "cifar100", "svhn")
# A head learns after the convolutions and leaves them as they are: with it, the authors' networks here and
# in cnn-head are one run.
HEAD = {"layers": (10,), "head_epochs": 10}


def authors(name: str, data: tuple[str, ...], changes: dict[str, Any], **figures: Any) -> Row:
    """The authors' network and head; their figures were read with batch statistics in the test.

    Args:
        name: Of the row.
        data: Its datasets.
        changes: Settings over those of the network.
        **figures: `published` or `measured`.
    """
    settings = {**HEAD, "groups": "2:10", **changes}
    return Row(name, "cnn", "cnn", settings, data, batch_statistics=True, **figures)


def _rows(suffix: str, data: tuple[str, ...], resize: int) -> tuple[Row, ...]:
    size = {"resize": resize}
    rival = f"backprop{suffix}"
    return (
        authors(f"cnn{suffix}", data, size, published=_PUBLISHED),
        Row(f"best{suffix}", "best", "cnn", size, data, rival=rival),
        Row(rival, "backprop", "cnn", size, data),
    )


def on_images(
    name: str,
    title: str,
    rows: tuple[Row, ...],
    source: str,
    headline: tuple[tuple[str, str], ...] = (),
) -> Experiment:
    """An experiment with one table for grey and colour images.

    Args:
        name, title, source, headline: As in `Experiment`.
        rows: The table's lines.
    """
    return Experiment(
        name,
        title,
        data=(*GREY, *COLOUR),
        rows=in_panel("recipes", *rows),
        source=source,
        panels={"recipes": ""},
        main=("*",),
        headline=headline,
        quick={"cnn": {"max_width": 4, "resize": 20, "symmetric_dim": 12}},
    )


CNN = on_images(
    "cnn",
    "Convolutions: two layers of 128 kernels",
    rows=(
        *_rows("", GREY, 0),
        authors("cnn, 3 epochs", GREY, {"epochs": 3, "head_epochs": 3}, measured=_MEASURED),
        Row(
            "best, projections to 100",
            "best",
            "cnn",
            {"symmetric_dim": 100},
            GREY,
            rival="backprop",
        ),
        *_rows(" 64x64", COLOUR, 64),
    ),
    source=(
        "the released CNN notebooks (15 epochs); measured: the same code, 3 epochs. Both with batch "
        f"statistics in the test, and the differences are from ours read in that way; {CIFAR10_COPY}"
    ),
    headline=(("cnn 64x64", "cifar10"), ("best", "fashion-mnist")),
)
