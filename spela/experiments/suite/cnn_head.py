"""A linear layer on the frozen convolutions."""

from __future__ import annotations

from spela.experiments.declare import CIFAR10_COPY, LAST, Row
from spela.experiments.suite.cnn import COLOUR, GREY, HEAD, authors, on_images

__all__ = ["CNN_HEAD"]

_PUBLISHED = {
    "cifar10": {LAST: 64.9},
    "svhn": {LAST: 84.9},
}
_MEASURED = {"fashion-mnist": {LAST: 86.85}}


def _rows(suffix: str, data: tuple[str, ...], resize: int) -> tuple[Row, ...]:
    size = {"resize": resize}
    rival = f"backprop, 15 epochs{suffix}"
    wide_rival = f"backprop, hidden 1024, 15 epochs{suffix}"
    return (
        authors(f"cnn, head 10{suffix}", data, size, published=_PUBLISHED),
        # 5 epochs of the convolutions and 10 of the head: of the authors' width, and of our linear layers'.
        Row(f"best, head 10{suffix}", "best", "cnn", {**size, **HEAD}, data, rival=rival),
        Row(
            f"best, head 1024{suffix}",
            "best",
            "cnn",
            {**size, **HEAD, "layers": (1024,)},
            data,
            rival=wide_rival,
        ),
        Row(rival, "backprop", "cnn", {**size, "epochs": 15}, data),
        Row(wide_rival, "backprop", "cnn", {**size, "layers": (1024,), "epochs": 15}, data),
    )


CNN_HEAD = on_images(
    "cnn-head",
    "A linear head on frozen convolutions",
    rows=(
        *_rows("", GREY, 0),
        authors(
            "cnn, 3 epochs, head 10, 3 epochs",
            GREY,
            {"epochs": 3, "head_epochs": 3},
            measured=_MEASURED,
        ),
        *_rows(" 64x64", COLOUR, 64),
    ),
    source=(
        "the released CNN notebooks (15 epochs, then 10 for the head); measured: the same code, 3 and 3 "
        "epochs, 86.6 to 87.1. Both with batch statistics in the test, and the differences are from ours "
        f"read in that way; {CIFAR10_COPY}"
    ),
)
