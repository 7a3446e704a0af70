"""The plots of what a training step takes: accuracy against memory, memory and time against size."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import BboxBase

from spela.reports.lines import line_style, say_start

__all__ = ["against_memory", "memory_figure"]

Rows = list[dict[str, Any]]


def against_memory(rows: Rows) -> Figure:
    """Accuracy against a step's peak memory: a named point a row, SPELA's joined by a line.

    The last layer's; a hollow point at the same memory is what all layers together answer.

    Args:
        rows: Of a table, with `peak_memory_bytes`.
    """
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.subplots()
    for place, series in enumerate(dict.fromkeys(row["series"] for row in rows)):
        mine = sorted(
            (row for row in rows if row["series"] == series), key=lambda r: r["peak_memory_bytes"]
        )
        x = [row["peak_memory_bytes"] / 1e6 for row in mine]
        last = [row["accuracy"][-1] for row in mine]
        style = line_style(place) | ({} if series == "SPELA" else {"linestyle": ""})
        # A series of one row that has its name is named at its point.
        label = None if [row["row"] for row in mine] == [series] else series
        axes.errorbar(
            x,
            [figures["mean"] for figures in last],
            yerr=[figures["sd"] or 0 for figures in last],
            capsize=3,
            label=label,
            **style,
        )
        together = [row for row in mine if "vote" in row]
        axes.plot(
            [row["peak_memory_bytes"] / 1e6 for row in together],
            [row["vote"]["mean"] for row in together],
            **(style | {"linestyle": "", "markerfacecolor": "none"}),
        )
    if any("vote" in row for row in rows):
        axes.plot([], [], "ok", markerfacecolor="none", label="hollow: all layers together")
    most = max(row["peak_memory_bytes"] for row in rows) / 1e6
    axes.set_xlim(0, 1.05 * most)
    axes.set_xlabel("peak memory of a training step, MB")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)
    say_start(axes, "y")
    _name_points(axes, rows)
    return figure


def _name_points(axes: Axes, rows: Rows) -> None:
    """Names beside their points, where they cover neither another's name nor leave the axes."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    taken: list[BboxBase] = []
    for row in sorted(rows, key=lambda r: -r["accuracy"][-1]["mean"]):
        point = row["peak_memory_bytes"] / 1e6, row["accuracy"][-1]["mean"]
        for side, up in itertools.product((1, -1), (5, -11)):
            text = axes.annotate(
                row["row"],
                point,
                xytext=(5 * side, up),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                fontsize=7,
            )
            box = text.get_window_extent()
            if box.x1 <= axes.bbox.x1 and not any(box.overlaps(other) for other in taken):
                break
            if (side, up) != (-1, -11):
                text.remove()
        taken.append(box)


def memory_figure(points: list[dict[str, Any]]) -> Figure:
    """Against depth at the width with most depths, and against width at the depth with most widths.

    Args:
        points: Of the benchmark: method, depth, width, peak_bytes, step_ms.
    """
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    by_depth, by_width, time = figure.subplots(1, 3)
    width = statistics.mode(p["width"] for p in points)
    depth = statistics.mode(p["depth"] for p in points)
    for axes, fixed, value, along, key, scale in (
        (by_depth, "width", width, "depth", "peak_bytes", 1e-6),
        (by_width, "depth", depth, "width", "peak_bytes", 1e-6),
        (time, "width", width, "depth", "step_ms", 1.0),
    ):
        for place, method in enumerate(dict.fromkeys(p["method"] for p in points)):
            line = sorted(
                (p for p in points if p["method"] == method and p[fixed] == value),
                key=lambda p: p[along],
            )
            values = [scale * p[key] for p in line]
            name = method.replace("_", " ")
            axes.plot(
                [p[along] for p in line], values, markersize=4, label=name, **line_style(place)
            )
        axes.set_xlabel("layers" if along == "depth" else "width")
        what = "peak memory of a step, MB" if key == "peak_bytes" else "time of a step, ms"
        axes.set_ylabel(what, fontsize=8)
        axes.set_xticks(sorted({p[along] for p in points if p[fixed] == value}))
        axes.set_title(f"{fixed} {value:g}", fontsize=9)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    by_depth.legend(fontsize=7)
    return figure
