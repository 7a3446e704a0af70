"""A run's plots: curves by layer, diagnostics, confusion, class geometry; each a figure of one idea."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from spela.reports.lines import epoch_axis, line_style, say_start, start_at_zero
from spela.reports.looks import LayerLook

__all__ = [
    "confusion_figure",
    "curve_figures",
    "diagnostic_figures",
    "diagnostics_figure",
    "geometry_figure",
]

MAX_CLASSES_NAMED = 20
_LONGEST_NAME = 20
_SIDE = 2.9  # of a square, in inches
_SIZE = (3.6, 2.7)  # about as wide as a phone, so that its text is as large as the page's

_DIAGNOSTICS = {
    "loss": "loss on the probe",
    "weight_norm": "weight norm (Frobenius)",
    "dead_units": "share of dead units",
    "cosine_margin": "cosine margin, nearest wrong class",
    "alignment": "cosine with end-to-end gradient",
}


# All margins are fixed: matplotlib's layout engines take as long again as drawing.
def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE)
    figure.subplots_adjust(left=0.17, right=0.97, bottom=0.17, top=0.96)
    return figure, figure.subplots()


def _by_layer(
    axes: Axes, epochs: list[int], rows: list[list[float]], names: Sequence[str], label: str
) -> None:
    """One line a layer: rows[epoch][layer]."""
    for layer, name in enumerate(names):
        values = [row[layer] for row in rows]
        axes.plot(epochs, values, markersize=4, label=name, **line_style(layer))
    epoch_axis(axes, epochs[0], epochs[-1])
    axes.set_ylabel(label, fontsize=9)
    axes.grid(alpha=0.3)
    if len(names) > 1:
        axes.legend(fontsize=8, ncols=1 + (len(names) > 8))


def curve_figures(records: list[dict[str, Any]], names: list[str]) -> list[tuple[str, str, Figure]]:
    """Loss, test accuracy and weight norms by epoch.

    Args:
        records: The lines of metrics.jsonl, one an epoch.
        names: Of the layers that answer.

    Returns:
        (file name without ending, what it shows, figure).
    """
    epochs = [record["epoch"] for record in records]
    norms = [record["weight_norm"] for record in records]
    # A block, and a network that answers at its end alone, has several weights.
    several = len(norms[0]) != len(names)
    weights = [f"weight {index + 1}" for index in range(len(norms[0]))] if several else names
    accuracy = [[100 * share for share in record["test_accuracy"]] for record in records]
    losses = [record["train_loss"] for record in records]
    figures = []
    for file, rows, lines, label in (
        ("accuracy", accuracy, names, "test accuracy, %"),
        ("loss", losses, names, "mean training loss"),
        ("weight-norm", norms, weights, "weight norm (Frobenius)"),
    ):
        figure, axes = _panel()
        _by_layer(axes, epochs, rows, lines, label)
        if file == "accuracy" and axes.dataLim.height > 0:  # one figure has nothing to be near
            say_start(axes, "y")
        else:
            start_at_zero(axes)
        figures.append((file, f"{label} by epoch", figure))
    return figures


def diagnostics_figure(records: list[dict[str, Any]]) -> Figure | None:
    """What a run's `--diagnostics` noted, by layer and epoch, in one figure.

    Args:
        records: The lines of metrics.jsonl, one an epoch.

    Returns:
        The figure, or None if an epoch has no diagnostics.

    Example:
        >>> diagnostics_figure([{"epoch": 1, "test_accuracy": [0.5]}]) is None
        True
    """
    if not _diagnosed(records):
        return None
    figure = Figure(figsize=(13.5, 6.2), layout="constrained")
    for axes, key in zip(figure.subplots(2, 3).flat, _DIAGNOSTICS, strict=False):
        _diagnostic(axes, records, key, [])
    figure.delaxes(figure.axes[-1])
    return figure


def diagnostic_figures(
    records: list[dict[str, Any]], names: list[str]
) -> list[tuple[str, str, Figure]]:
    """The same, each in a figure of its own; none if an epoch has no diagnostics.

    Args:
        records: The lines of metrics.jsonl, one an epoch.
        names: Of the layers that answer.

    Returns:
        (file name without ending, what it shows, figure).
    """
    figures = []
    for key, label in _DIAGNOSTICS.items() if _diagnosed(records) else ():
        figure, axes = _panel()
        _diagnostic(axes, records, key, names)
        figures.append((f"diagnostics-{key.replace('_', '-')}", f"{label} by epoch", figure))
    return figures


def _diagnosed(records: list[dict[str, Any]]) -> bool:
    return bool(records) and all("diagnostics" in record for record in records)


def _diagnostic(axes: Axes, records: list[dict[str, Any]], key: str, names: list[str]) -> None:
    # None, where the figure has no meaning for the method, leaves a gap.
    rows = [[_number(row[key]) for row in record["diagnostics"]] for record in records]
    if len(names) != len(rows[0]):  # of a network that answers at its end alone
        names = [f"layer {index + 1}" for index in range(len(rows[0]))]
    _by_layer(axes, [record["epoch"] for record in records], rows, names, _DIAGNOSTICS[key])
    if key in ("loss", "weight_norm", "dead_units"):
        start_at_zero(axes)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _room(names: Sequence[str], size: int) -> float:
    """Inches that the names of classes take beside an axis."""
    if len(names) > MAX_CLASSES_NAMED:
        return 0.3
    return 0.15 + size / 72 * 0.62 * max(len(_short(name)) for name in names)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _name_ticks(axes: Axes, names: Sequence[str], size: int) -> None:
    if len(names) > MAX_CLASSES_NAMED:
        return
    short = [_short(name) for name in names]
    turned = 0 if max(map(len, short)) <= 2 else 90
    axes.set_xticks(range(len(names)), short, fontsize=size, rotation=turned)
    axes.set_yticks(range(len(names)), short, fontsize=size)


def _square(figure: Figure, left: float, bottom: float, side: float) -> Axes:
    """Axes by inches from the figure's corner."""
    width, height = figure.get_size_inches()
    return figure.add_axes((left / width, bottom / height, side / width, side / height))


def confusion_figure(counts: Tensor, names: Sequence[str]) -> Figure:
    """Shares of each true class that the last layer gives each name.

    Args:
        counts: (C, C) int64, rows the true class.
        names: C class names.

    Returns:
        The figure.
    """
    room = _room(names, 9) + 0.3  # for the axes' own names
    figure = Figure(figsize=(room + _SIDE + 0.8, room + _SIDE + 0.15))
    axes = _square(figure, room, room, _SIDE)
    share = counts.double() / counts.sum(dim=1, keepdim=True).clamp_min(1)
    image = axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    if len(names) <= MAX_CLASSES_NAMED:
        for row in range(len(names)):
            for column in range(len(names)):
                value = float(share[row, column])
                if value >= 0.005:
                    shade = "white" if value > 0.5 else "black"
                    text = f"{100 * value:.0f}"
                    axes.text(column, row, text, ha="center", va="center", fontsize=9, color=shade)
    else:  # too many for numbers
        _scale(figure, image, room + _SIDE + 0.1, room, [0, 0.5, 1])
    _name_ticks(axes, names, 9)
    axes.set_xlabel("class that the last layer names")
    axes.set_ylabel(
        "true class (numbers: % of it)" if len(names) <= MAX_CLASSES_NAMED else "true class"
    )
    return figure


def _scale(figure: Figure, image: Any, left: float, bottom: float, ticks: list[float]) -> None:
    """What an image's colours mean, in a bar at its right."""
    width, height = figure.get_size_inches()
    place = figure.add_axes((left / width, bottom / height, 0.12 / width, _SIDE / height))
    figure.colorbar(image, cax=place, ticks=ticks)


def geometry_figure(look: LayerLook, labels: Tensor, names: Sequence[str]) -> Figure:
    """Where a layer puts the classes: their mean scores, and its unit outputs along their two main axes.

    Args:
        look: The layer's outputs and scores of N samples.
        labels: (N,) their classes.
        names: C class names.

    Returns:
        A figure of two panels.
    """
    room = _room(names, 8)
    figure = Figure(figsize=(room + _SIDE + 0.8, room + 2 * _SIDE + 1.0))
    top = _square(figure, room, room + _SIDE + 0.4, _SIDE)
    bottom = _square(figure, room, 0.1, _SIDE)
    classes = range(look.scores.shape[1])
    present = [k for k in classes if bool((labels == k).any())]
    means = torch.full((len(classes), len(classes)), math.nan)
    for k in present:
        means[k] = look.scores[labels == k].mean(dim=0)
    most, title = 1.0, "mean cosine of a class (row)\nto each class vector"
    if not look.scores_are_cosines:
        most, title = float(means[present].abs().max()), "mean logits of a class (row)"
    image = top.imshow(means.numpy(), cmap="RdBu_r", vmin=-most, vmax=most)
    _name_ticks(top, names, 8)
    top.set_title(f"{look.name}: {title}", fontsize=10)
    _scale(figure, image, room + _SIDE + 0.1, room + _SIDE + 0.4, [-most, 0, most])
    points = _main_axes(look.outputs)
    bottom.scatter(points[:, 0], points[:, 1], c=labels, cmap="tab10", s=7)
    if len(names) <= MAX_CLASSES_NAMED:
        for k in present:
            # A name in the middle of its class: told apart without colours.
            x, y = points[labels == k].mean(dim=0).tolist()
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1}
            bottom.text(x, y, _short(names[k]), ha="center", va="center", fontsize=10, bbox=box)
    bottom.set_title(f"{look.name}: unit outputs, two main axes", fontsize=10)
    bottom.set_xticks([])
    bottom.set_yticks([])
    return figure


def _main_axes(y: Tensor) -> Tensor:
    """(N, 2): unit outputs along the two directions in which they differ most."""
    unit = torch.nn.functional.normalize(y.double(), dim=1)
    centred = unit - unit.mean(dim=0)
    # Through the samples' products: a convolution's outputs are far longer than there are samples.
    values, axes = torch.linalg.eigh(centred @ centred.T)
    points = axes[:, -2:].flip(1) * values[-2:].flip(0).clamp_min(0).sqrt()
    if points.shape[1] < 2:
        points = torch.cat([points, torch.zeros_like(points)], dim=1)
    return points
