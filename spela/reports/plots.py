"""The plots of a table: sweeps, accuracy by layer, curves by epoch, memory, early exit."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spela.experiments.archive import find_run
from spela.experiments.registry import EXPERIMENTS
from spela.reports.lines import epoch_axis, line_style, say_start
from spela.reports.memory_plots import against_memory, memory_figure
from spela.reports.run_figures import diagnostics_figure
from spela.training import read_evidence

__all__ = ["table_figures"]

# Of a network with one answer.
_OUTPUT = {"color": "0.45", "marker": "o", "markerfacecolor": "none", "linestyle": ""}
Table = dict[str, Any]
Rows = list[dict[str, Any]]
Named = tuple[str, str, Figure]  # file name without ending, caption, figure


def table_figures(table: Table, runs: Path) -> list[Named]:
    """All plots of an experiment.

    Args:
        table: From `build_table`.
        runs: The folder of its runs, for the curves.

    Returns:
        (file name without ending, caption, figure), in the order of the page.
    """
    rows = [row for row in table["rows"] if "accuracy" in row]
    figures: list[Named] = []
    for data in dict.fromkeys(row["data"] for row in rows):
        mine = [row for row in rows if row["data"] == data]
        figures += _sweep_figures(table, data, mine)
        figures += _layer_figures(table, data, mine)
        figures += _memory_figures(table, data, mine)
        figures += _curve_figures(table, data, mine, runs)
        figures += _diagnostics_figures(table, data, mine, runs)
    figures += _measured_figures(table)
    return figures


def _sweep_figures(table: Table, data: str, rows: Rows) -> Iterator[Named]:
    sweeps = {
        panel: chosen
        for panel, chosen in _panels(rows, table["panels"], with_x=True).items()
        if len({row["x"] for row in chosen}) > 1
    }
    if sweeps:
        yield (
            f"{table['experiment']}-{data}-sweeps",
            f"{data}: last layer, mean and deviation over seeds{_crosses(rows)}",
            _sweeps(sweeps, table["panels"]),
        )


def _layer_figures(table: Table, data: str, rows: Rows) -> Iterator[Named]:
    for panel, chosen in _panels(rows, table["panels"], with_x=False).items():
        yield (
            f"{table['experiment']}-{data}-{panel}",
            f"{data}, {panel}: mean and deviation over seeds of every layer{_crosses(chosen)}",
            _layers(chosen),
        )


def _memory_figures(table: Table, data: str, rows: Rows) -> Iterator[Named]:
    for panel in EXPERIMENTS[table["experiment"]].against_memory:
        chosen = [row for row in rows if row["panel"] == panel and "peak_memory_bytes" in row]
        if len(chosen) > 1:
            yield (
                f"{table['experiment']}-{data}-{panel}-memory",
                f"{data}, {panel}: last layer, and all together, against a training step's peak "
                "memory beside weights, optimizer state and batch; mean and deviation over seeds",
                against_memory(chosen),
            )


def _curve_figures(table: Table, data: str, rows: Rows, runs: Path) -> Iterator[Named]:
    main = EXPERIMENTS[table["experiment"]].main
    least = min(2, max(row["epochs"] for row in rows))  # one epoch makes no curve beside others
    curves = [
        row
        for row in rows
        if any(fnmatchcase(row["row"], pattern) for pattern in main)
        and row["epochs"] >= least
        and _records(row, runs)
    ]
    if curves:
        yield (
            f"{table['experiment']}-{data}-curves",
            f"{data}: test accuracy of every layer after every epoch, mean and range over seeds; a "
            "head's from its first epoch on. All with the same axis",
            _curves(curves, runs),
        )


def _diagnostics_figures(table: Table, data: str, rows: Rows, runs: Path) -> Iterator[Named]:
    for row in rows:
        key = row["finished"][0]
        figure = diagnostics_figure(read_evidence(find_run(runs, key)).records)
        if figure is not None:
            caption = f"{data}: {row['row']}, layers on fixed training samples ({key})"
            yield f"{table['experiment']}-{data}-{row['row']}", caption, figure


def _measured_figures(table: Table) -> Iterator[Named]:
    if not table["measured"].get("points"):
        return
    if table["measure"] == "memory":
        points = table["measured"]["points"]
        yield f"{table['experiment']}-depth", "Against depth", memory_figure(points)
    else:
        caption = (
            "Early exit: thresholds, the same at every layer, against accuracy, and accuracy against "
            "multiply-adds; stars are calibrated thresholds"
        )
        yield f"{table['experiment']}-exits", caption, _exits(table["measured"])


def _crosses(rows: Rows) -> str:
    shown = any("published" in figures for row in rows for figures in row["accuracy"])
    return "; crosses are published or measured figures" if shown else ""


def _panels(rows: Rows, panels: dict[str, str], with_x: bool) -> dict[str, Rows]:
    found = {
        panel: [r for r in rows if r["panel"] == panel and (r["x"] is not None) == with_x]
        for panel in panels
    }
    return {panel: chosen for panel, chosen in found.items() if chosen}


def _sweeps(panels: dict[str, Rows], labels: dict[str, str]) -> Figure:
    figure = Figure(figsize=(max(4.6 * len(panels), 6), 3.8), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    drawn: dict[str, Any] = {}  # a series is the same line in every panel, and named once
    for axes, (panel, rows) in zip(grid, panels.items(), strict=True):
        values = [row["x"] for row in rows]
        for series in dict.fromkeys(row["series"] for row in rows):
            style = line_style(list(drawn).index(series) if series in drawn else len(drawn))
            line = sorted((r for r in rows if r["series"] == series), key=lambda r: r["x"])
            last = [row["accuracy"][-1] for row in line]
            places = [row["x"] for row in line]
            means = [f["mean"] for f in last]
            spread = [f["sd"] or 0.0 for f in last]
            bars = axes.errorbar(places, means, yerr=spread, capsize=3, label=series, **style)
            drawn.setdefault(series, bars)
            known = [
                (x, f["published"]) for x, f in zip(places, last, strict=True) if "published" in f
            ]
            if known:
                colour = style["color"]
                axes.scatter(*zip(*known, strict=True), marker="x", color=colour, zorder=3)
        if min(values) > 0 and max(values) / min(values) > 20:
            axes.set_xscale("log")
        elif all(value == int(value) for value in values):  # layers, outputs
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(labels[panel])
        axes.set_ylabel("test accuracy, %")
        axes.grid(alpha=0.3)
        say_start(axes, "y")
    figure.legend(handles=list(drawn.values()), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _layers(rows: Rows) -> Figure:
    """One line a row, one point a layer; of rows that are compared by batch statistics, that reading."""
    figure = Figure(figsize=(9, 1.6 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    depth = max(len(row["accuracy"]) for row in rows)
    for place, row in enumerate(rows):
        layers = row["accuracy"]
        ours = layers
        if row["batch_statistics"] and "test_accuracy_batch_statistics" in row:
            ours = row["test_accuracy_batch_statistics"]
        for layer, (found, known) in enumerate(zip(ours, layers, strict=True)):
            # Layers one below the other: their points often lie on each other.
            height = place + 0.5 * ((layer + 0.5) / len(layers) - 0.5)
            style = _OUTPUT if len(layers) == 1 else line_style(layer) | {"linestyle": ""}
            axes.errorbar(found["mean"], height, xerr=found["sd"] or 0, ms=4.5, capsize=2, **style)
            if "published" in known:
                axes.plot(known["published"], height, "x", color="black", zorder=3)
    if depth > 1:
        named = [
            (line_style(layer) | {"linestyle": ""}, f"layer {layer + 1}") for layer in range(depth)
        ]
        if any(len(row["accuracy"]) == 1 for row in rows):
            named.append((_OUTPUT, "output"))
        handles = [axes.plot([], [], ms=4.5, label=label, **style)[0] for style, label in named]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(depth + 1, 6), fontsize=8
        )
    axes.set_yticks(range(len(rows)), [row["row"] for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("test accuracy, %")
    axes.grid(alpha=0.3)
    say_start(axes, "x")
    return figure


def _records(row: dict[str, Any], runs: Path) -> list[list[dict[str, Any]]]:
    """The records of a row's finished seeds; none if the files of one of its runs are gone.

    Raises:
        ValueError: If a run's files disagree, or seeds have records of different epochs.
    """
    seeds = [read_evidence(find_run(runs, key)).records for key in row["finished"]]
    if not all(seeds):
        return []
    if len({len(records) for records in seeds}) > 1:
        found = ", ".join(f"{key} {len(r)}" for key, r in zip(row["finished"], seeds, strict=True))
        raise ValueError(f"runs of {row['row']!r} have records of different epochs ({found})")
    return seeds


def _curves(rows: Rows, runs: Path) -> Figure:
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(4 * columns, 3 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(rows) :]:
        axes.set_visible(False)
    for axes, row in zip(grid.flat, rows, strict=False):
        _row_curve(axes, row, _records(row, runs))
    for axes in grid[:, 0]:  # the same for all
        axes.set_ylabel("test accuracy, %", fontsize=8)
        say_start(axes, "y")
    return figure


def _row_curve(axes: Axes, row: dict[str, Any], seeds: list[list[dict[str, Any]]]) -> None:
    layers = len(seeds[0][0]["test_accuracy"])
    for layer in range(layers):
        # Before its epochs a head has not learned anything.
        is_head = row["head_epochs"] > 0 and layer >= len(row["channels"])
        start = row["epochs"] if is_head else 0
        epochs = [record["epoch"] for record in seeds[0][start:]]
        curves = [[100 * r["test_accuracy"][layer] for r in seed[start:]] for seed in seeds]
        means = [sum(values) / len(values) for values in zip(*curves, strict=True)]
        label = "head" if is_head else f"layer {layer + 1}" if layers > 1 else "output"
        dots = max(1, len(epochs) // 8)
        style = line_style(layer)
        axes.plot(epochs, means, markersize=3.5, markevery=dots, label=label, **style)
        if len(curves) > 1:
            low, high = ([pick(v) for v in zip(*curves, strict=True)] for pick in (min, max))
            axes.fill_between(epochs, low, high, alpha=0.15, color=style["color"])
    axes.set_title(row["row"], fontsize=9)
    epoch_axis(axes, seeds[0][0]["epoch"], seeds[0][-1]["epoch"])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _exits(measured: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    by_threshold, by_cost = figure.subplots(1, 2)
    points = measured["points"]
    for place, (row, data) in enumerate(dict.fromkeys((p["row"], p["data"]) for p in points)):
        mine = [p for p in points if (p["row"], p["data"]) == (row, data)]
        thresholds = sorted({p["threshold"] for p in mine})
        accuracy, cost = (
            [statistics.fmean([p[key] for p in mine if p["threshold"] == t]) for t in thresholds]
            for key in ("accuracy", "multiply_adds")
        )
        style = line_style(place)
        by_threshold.plot(thresholds, accuracy, markersize=4, label=f"{row}, {data}", **style)
        by_cost.plot([100 * c for c in cost], accuracy, markersize=4, **style)
        for chosen in measured.get("halves", []):
            if (chosen["row"], chosen["data"]) != (row, data):
                continue
            spent = 100 * chosen["multiply_adds"]
            by_cost.plot(spent, chosen["accuracy"], "*", color=style["color"], markersize=11)
    by_threshold.set_xlabel("threshold (margin in cosine)")
    by_cost.set_xlabel("multiply-adds, % of the whole network")
    for axes in (by_threshold, by_cost):
        axes.set_ylabel("test accuracy, %")
        axes.grid(alpha=0.3)
        say_start(axes, "y")
    by_threshold.legend(fontsize=8)
    return figure
