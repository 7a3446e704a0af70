"""The experiments' plots: no name twice, lines told apart without colours, axes that say where they start."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spela.reports.lines import line_style
from spela.reports.memory_plots import against_memory, memory_figure
from spela.reports.plots import _exits, _layers, _sweeps


def _row(name: str, accuracy: list[float], **more: Any) -> dict[str, Any]:
    figures = [{"mean": mean, "sd": 0.1} for mean in accuracy]
    return {"row": name, "accuracy": figures, "batch_statistics": False, "series": name, **more}


def _legend(figure: Figure) -> list[str]:
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return [text.get_text() for legend in legends if legend for text in legend.get_texts()]


def _styles(axes: Axes) -> list[tuple[str, Any]]:
    return [(str(line.get_linestyle()), line.get_marker()) for line in axes.get_lines()]


def test_forty_lines_are_told_apart_without_colours() -> None:
    styles = [line_style(index) for index in range(40)]
    assert len({(style["marker"], style["linestyle"]) for style in styles}) == 40


def test_points_of_memory_are_named_once_and_apart() -> None:
    rows = [
        _row("backprop", [81.0], peak_memory_bytes=96e6),
        _row("layers", [80.9], peak_memory_bytes=50e6, series="SPELA"),
        _row("3 blocks", [80.8], peak_memory_bytes=50.2e6, series="SPELA"),
        _row("predsim", [71.0], peak_memory_bytes=51e6, series="rivals"),
    ]
    figure = against_memory(rows)
    axes = figure.axes[0]
    names = [text.get_text() for text in axes.texts]
    assert names == ["backprop", "layers", "3 blocks", "predsim"]
    assert _legend(figure) == ["SPELA", "rivals"]  # backprop's name stands at its point
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert heights["layers"] > 0 > heights["3 blocks"]  # just under the other point
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 for box in boxes)
    start = axes.get_ylim()[0]
    assert 60 < start < 71
    assert axes.get_ylabel() == f"test accuracy, % (axis starts at {start:g})"


def test_what_all_layers_answer_together_is_a_hollow_point() -> None:
    rows = [
        _row("backprop", [81.0], peak_memory_bytes=96e6),
        _row("layers", [76.0, 80.9], peak_memory_bytes=5e7, series="SPELA", vote={"mean": 82.8}),
    ]
    figure = against_memory(rows)
    hollow = [
        line
        for line in figure.axes[0].get_lines()
        if line.get_markerfacecolor() == "none" and len(line.get_xdata())
    ]
    assert [line.get_xydata().tolist() for line in hollow] == [[[50.0, 82.8]]]
    assert _legend(figure) == ["hollow: all layers together", "SPELA"]


def test_a_series_is_one_line_in_all_panels_and_named_once() -> None:
    def panel(names: str) -> list[dict[str, Any]]:
        return [_row(name, [80.0 + x], x=x, series=name) for name in names for x in (1, 2)]

    figure = _sweeps({"one": panel("ab"), "two": panel("bc")}, {"one": "x", "two": "x"})
    assert _legend(figure) == ["a", "b", "c"]
    drawn = [
        [(bars.lines[0].get_color(), bars.lines[0].get_marker()) for bars in axes.containers]
        for axes in figure.axes
    ]
    assert drawn[0][1] == drawn[1][0]
    assert len({*drawn[0], *drawn[1]}) == 3


def test_layers_have_markers_of_their_own_and_the_axis_says_its_start() -> None:
    figure = _layers([_row("best", [90.1, 90.5, 90.7]), _row("backprop", [90.3])])
    axes = figure.axes[0]
    assert _legend(figure) == ["layer 1", "layer 2", "layer 3", "output"]
    markers = [container.lines[0].get_marker() for container in axes.containers]
    assert len(set(markers[:3])) == 3
    start = axes.get_xlim()[0]
    assert axes.get_xlabel() == f"test accuracy, % (axis starts at {start:g})"
    assert 89 < start < 90.1


def test_numbers_of_layers_are_whole_on_their_axis_and_shares_are_not() -> None:
    depths = [_row("best", [80.0], x=x) for x in (3, 5)]
    shares = [_row("best", [80.0], x=x) for x in (0.1, 0.3)]
    figure = _sweeps({"depth": depths, "share": shares}, {"depth": "layers", "share": "share"})
    whole = [all(t == int(t) for t in axes.get_xticks()) for axes in figure.axes]
    assert whole == [True, False]


def test_curves_of_early_exit_are_named_once() -> None:
    points = [
        {"row": "best", "data": data, "threshold": t, "accuracy": 90 + t, "multiply_adds": t}
        for data in ("digits", "mnist")
        for t in (0.0, 0.5)
    ]
    figure = _exits({"points": points})  # as a table of an earlier version: no thresholds of halves
    assert _legend(figure) == ["best, digits", "best, mnist"]
    for axes in figure.axes:
        assert len(set(_styles(axes))) == 2


def test_depths_are_whole_and_memory_starts_at_zero() -> None:
    points = [
        {"method": m, "depth": d, "width": 64, "peak_bytes": 1e6 * d, "step_ms": 1.0}
        for m in ("spela", "optimizer_in_backward")
        for d in (2, 3)
    ]
    figure = memory_figure(points)
    for axes in (figure.axes[0], figure.axes[2]):
        assert list(axes.get_xticks()) == pytest.approx([2, 3])
        assert axes.get_ylim()[0] == 0
        assert len(set(_styles(axes))) == 2
    assert _legend(figure) == ["spela", "optimizer in backward"]
