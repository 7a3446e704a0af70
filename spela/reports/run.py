"""A run's report: DIR/report.html, a self-contained page, and its plots as PNG files."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from spela.data import Dataset, prepare
from spela.experiments import LoadedRun
from spela.layers import LocalLayer
from spela.reports.rendering import render, write_bytes
from spela.training import RunConfig, RunFolder, evaluate, extension_note, read_evidence

__all__ = ["diagnostics_figure", "write_report"]

# Enough to see the clusters, few enough to draw and to project in well under a second.
GEOMETRY_SAMPLES = 1000
MAX_CLASSES_NAMED = 20


def _per_layer(
    axes: Axes, records: list[dict[str, Any]], key: str, factor: float = 1.0, part: str = "layer"
) -> None:
    epochs = [record["epoch"] for record in records]
    for layer in range(len(records[0][key])):
        values = [factor * record[key][layer] for record in records]
        axes.plot(epochs, values, marker="o", markersize=3, label=f"{part} {layer + 1}")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _curves(records: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, accuracy, norm = figure.subplots(1, 3)
    _per_layer(loss, records, "train_loss")
    loss.set_ylabel("mean training loss")
    _per_layer(accuracy, records, "test_accuracy", 100)
    accuracy.set_ylabel("test accuracy, %")
    # A block, and a network that answers at its end alone, has several weights.
    several = len(records[0]["weight_norm"]) != len(records[0]["test_accuracy"])
    _per_layer(norm, records, "weight_norm", part="weight" if several else "layer")
    norm.set_ylabel("weight norm (Frobenius)")
    return figure


_DIAGNOSTICS = {
    "loss": "loss on the probe",
    "weight_norm": "weight norm (Frobenius)",
    "dead_units": "share of dead units",
    "cosine_margin": "cosine margin, nearest wrong class",
    "alignment": "cosine with end-to-end gradient",
}


def diagnostics_figure(records: list[dict[str, Any]]) -> Figure | None:
    """What a run's `--diagnostics` noted, by layer and epoch.

    Args:
        records: The lines of metrics.jsonl, one an epoch.

    Returns:
        The figure, or None if an epoch has no diagnostics.

    Example:
        >>> diagnostics_figure([{"epoch": 1, "test_accuracy": [0.5]}]) is None
        True
    """
    if not records or not all("diagnostics" in record for record in records):
        return None
    figure = Figure(figsize=(15, 3.2), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(1, 5), _DIAGNOSTICS.items(), strict=True):
        # None, where the figure has no meaning for the method, leaves a gap.
        values = [
            {"epoch": record["epoch"], key: [_number(row[key]) for row in record["diagnostics"]]}
            for record in records
        ]
        _per_layer(axes, values, key)
        axes.set_ylabel(label)
    return figure


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _name_ticks(axes: Axes, names: tuple[str, ...]) -> None:
    if len(names) <= MAX_CLASSES_NAMED:
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)


def _confusion(counts: Tensor, names: tuple[str, ...]) -> Figure:
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    share = counts.double() / counts.sum(dim=1, keepdim=True).clamp_min(1)
    image = axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class")
    if len(names) <= MAX_CLASSES_NAMED:
        for row in range(len(names)):
            for column in range(len(names)):
                value = float(share[row, column])
                if value >= 0.005:
                    shade = "white" if value > 0.5 else "black"
                    text = f"{100 * value:.0f}"
                    axes.text(column, row, text, ha="center", va="center", fontsize=7, color=shade)
    _name_ticks(axes, names)
    axes.set_xlabel("predicted by the last layer")
    axes.set_ylabel("true class")
    return figure


@torch.no_grad()
def _layer_outputs(run: LoadedRun, x: Tensor) -> list[tuple[int, LocalLayer, Tensor]]:
    outputs, position = [], 0
    for module in run.net:
        x = module(x)
        if isinstance(module, LocalLayer):
            position += 1
            outputs.append((position, module, x))
    return outputs


def _geometry(run: LoadedRun, dataset: Dataset) -> Figure | None:
    device = next(run.net.parameters()).device
    x = prepare(dataset.test_x[:GEOMETRY_SAMPLES]).to(device)
    labels = dataset.test_y[:GEOMETRY_SAMPLES].cpu()
    layers = _layer_outputs(run, x)
    if not layers:
        return None
    # First, middle and last show how the classes gather with depth; more would not fit a page.
    chosen = [layers[i] for i in sorted({0, len(layers) // 2, len(layers) - 1})]
    names = dataset.class_names
    figure = Figure(figsize=(4.2 * len(chosen), 7.6), layout="constrained")
    grid = figure.subplots(2, len(chosen), squeeze=False)
    for column, (position, layer, y) in enumerate(chosen):
        cosines = layer.scores(y).float().cpu()
        means = torch.stack(
            [
                cosines[labels == k].mean(dim=0) if bool((labels == k).any()) else cosines[0] * 0
                for k in range(layer.num_classes)
            ]
        )
        top, bottom = grid[0, column], grid[1, column]
        most, title = 1.0, "mean cosine of a class\nto each class vector"
        if not layer.scores_are_cosines:
            most, title = float(means.abs().max()), "mean logits of a class"
        image = top.imshow(means.numpy(), cmap="RdBu_r", vmin=-most, vmax=most)
        _name_ticks(top, names)
        top.set_title(f"layer {position}: {title}", fontsize=9)
        figure.colorbar(image, ax=top, shrink=0.8)
        unit = torch.nn.functional.normalize(y.double().cpu().flatten(1), dim=1)
        centred = unit - unit.mean(dim=0)
        # Through the samples' products: a convolution's outputs are far longer than there are samples.
        values, axes = torch.linalg.eigh(centred @ centred.T)
        points = axes[:, -2:].flip(1) * values[-2:].flip(0).clamp_min(0).sqrt()
        colours = labels.numpy()
        if points.shape[1] < 2:
            points = torch.cat([points, torch.zeros_like(points)], dim=1)
        dots = bottom.scatter(points[:, 0], points[:, 1], c=colours, cmap="tab10", s=6)
        if column == 0 and len(names) <= MAX_CLASSES_NAMED:
            handles, keys = dots.legend_elements(num=None)
            present = sorted(set(labels.tolist()))
            shown = [names[k] for k in present] if len(present) == len(handles) else keys
            figure.legend(handles, shown, loc="outside lower center", ncols=5, fontsize=8)
        bottom.set_title(f"layer {position}: unit outputs, two main axes", fontsize=9)
        bottom.set_xticks([])
        bottom.set_yticks([])
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def write_report(folder: RunFolder, run: LoadedRun, dataset: Dataset) -> Path:
    """Write DIR/plots/*.png and DIR/report.html, which embeds them.

    Args:
        folder: A run folder with metrics and a summary.
        run: Its network.
        dataset: The data it was trained on.

    Returns:
        Path of the HTML page.

    Raises:
        ValueError: If the folder has no finished run, or its files disagree.
        OSError: If it cannot be written.
    """
    evidence = read_evidence(folder)
    records, summary = evidence.records, evidence.summary
    if summary is None:
        raise ValueError(f"{folder.path} has no finished run to report on")
    result = evaluate(run.net, dataset.test_x, dataset.test_y)
    figures: dict[str, tuple[str, Figure | None]] = {
        "curves": ("Loss, accuracy and weight norm by layer", _curves(records)),
        "diagnostics": ("Layers on fixed training samples", diagnostics_figure(records)),
        "confusion": (
            "Confusion of the last layer",
            _confusion(result.confusion, dataset.class_names),
        ),
        "geometry": ("Class geometry of the layers (test samples)", _geometry(run, dataset)),
    }
    plots = folder.path / "plots"
    plots.mkdir(exist_ok=True)
    shown = []
    for name, (title, figure) in figures.items():
        if figure is None:
            continue
        png = _png(figure)
        write_bytes(plots / f"{name}.png", png)
        shown.append({"title": title, "data": base64.b64encode(png).decode("ascii")})
    page = render(
        "run.html",
        title=f"SPELA run {folder.path.name}",
        summary=summary,
        records=records,
        figures=shown,
        config=summary["config"],
        extension=extension_note(
            RunConfig.from_dict(summary["config"]), summary.get("extended_at", [])
        ),
        minutes=math.fsum(record["seconds"] for record in records) / 60,
    )
    write_bytes(folder.report, page)
    return folder.report
