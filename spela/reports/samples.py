"""Twelve test samples on a run's page, with what each layer answers; pictures where they are images."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from spela.data import Dataset
from spela.reports.looks import Looks

__all__ = ["sample_cards"]

MOST = 12
_SIDE = 96  # pixels of a picture on the page
_VALUES_SHOWN = 4
_ANSWERS_SHOWN = 3  # of deep networks, before the last


def sample_cards(looks: Looks, dataset: Dataset, names: Sequence[str]) -> list[dict[str, Any]]:
    """At most twelve samples, up to half of them misread by the last layer, which come first.

    Args:
        looks: What the network says of some test samples.
        dataset: Their dataset.
        names: Of the layers that answer.

    Returns:
        Of each sample its `place` in the test set, `label` and `answers` (layer, class, whether right) in
        words, `misread`, `margin` of the last layer, and its `picture` (PNG, base64) or first `values`, with
        `more` where it has more of them.
    """
    wrong = looks.answers[-1] != looks.labels
    misread, right = (flags.nonzero()[:, 0] for flags in (wrong, ~wrong))
    bad = min(len(misread), max(MOST // 2, MOST - len(right)))
    chosen = [*_spread(misread, bad), *_spread(right, min(len(right), MOST - bad))]
    x = dataset.test_x[looks.index[chosen].to(dataset.test_x.device)].cpu()
    shown = range(len(names))
    if len(names) > _ANSWERS_SHOWN + 1:
        shown = [*range(_ANSWERS_SHOWN), len(names) - 1]  # type: ignore[assignment]
    pictures = _pictures(x) if x.dim() == 4 else [""] * len(x)
    return [
        {
            "place": int(looks.index[row]),
            "label": dataset.class_names[int(looks.labels[row])],
            "answers": [
                {
                    "layer": names[layer],
                    "text": dataset.class_names[int(looks.answers[layer, row])],
                    "right": bool(looks.answers[layer, row] == looks.labels[row]),
                }
                for layer in shown
            ],
            "misread": bool(wrong[row]),
            "margin": float(looks.margins[row]),
            "picture": picture,
            "values": [f"{value:.3g}" for value in sample.flatten()[:_VALUES_SHOWN].tolist()],
            "more": sample.numel() > _VALUES_SHOWN,
        }
        for row, sample, picture in zip(chosen, x, pictures, strict=True)
    ]


def _spread(places: Tensor, count: int) -> list[int]:
    """So many of some places, at equal distances."""
    return places[torch.arange(count) * len(places) // max(count, 1)].tolist()


def _pictures(x: Tensor) -> list[str]:
    """Images (N, C, H, W) as PNG in base64; those that are no pixels are scaled to black and white."""
    if x.dtype != torch.uint8:
        x = x.float()
        low, high = x.min(), x.max()
        if low < 0 or high > 1:
            x = (x - low) / (high - low).clamp_min(1e-12)
        x = (255 * x).round().to(torch.uint8)
    if x.shape[1] not in (1, 3):
        x = x.float().mean(dim=1, keepdim=True).to(torch.uint8)
    pictures = []
    for pixels in x.permute(0, 2, 3, 1).numpy():
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        image.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        pictures.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
    return pictures
