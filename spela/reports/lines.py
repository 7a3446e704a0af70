"""What lines and axes of all plots have in common: told apart in grey, whole epochs, a start that is said."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

__all__ = ["epoch_axis", "line_style", "say_start", "start_at_zero"]

_MARKERS = "osD^vP*X"
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))


def line_style(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of a plot's line by its number: no two of the first forty are alike in grey.

    Example:
        >>> line_style(0), line_style(9)["marker"]
        ({'color': 'C0', 'marker': 'o', 'linestyle': '-'}, 's')
    """
    return {
        "color": f"C{index % 10}",
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _DASHES[index % len(_DASHES)],
    }


def epoch_axis(axes: Axes, first: int, last: int) -> None:
    """Label the x axis as epochs, which are whole.

    Args:
        axes: Whose lines are drawn.
        first, last: Epochs that they show.
    """
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    room = max(0.05 * (last - first), 0.3 if first == last else 0)
    axes.set_xlim(first - room, last + room)


def start_at_zero(axes: Axes) -> None:
    """Let the y axis start at 0 where no value is below it."""
    low, high = axes.dataLim.intervaly
    if 0 <= low <= high:  # the other way round where there are no finite values
        axes.set_ylim(0, 1.1 * high or 1)


def say_start(axes: Axes, which: str) -> None:
    """Let an axis of numbers from 0 up start at 0, or at a tick that its label names where 0 is far away.

    Args:
        axes: Whose lines are drawn and whose label is set.
        which: x or y.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    ticks = [float(tick) for tick in axis.get_majorticklocs()]
    if len(ticks) < 2 or not math.isfinite(low) or not math.isfinite(high):
        return
    step = ticks[1] - ticks[0]
    start = step * math.floor(low / step + 1e-9)
    if low < high / 2 or start <= 0:
        start = 0.0
    (axes.set_xlim if which == "x" else axes.set_ylim)(start, high)
    if start > 0:
        axis.set_label_text(f"{axis.get_label_text()} (axis starts at {start:g})")
