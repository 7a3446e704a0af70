"""The cells of a table's rows as text, the same in HTML, Markdown and the main table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = [
    "COLUMNS",
    "by_layer",
    "cells",
    "change_text",
    "deviation_text",
    "difference_text",
    "missing",
    "published_text",
]

COLUMNS = (
    "row",
    "data",
    "epochs",
    "seeds",
    "test accuracy by layer, %",
    "all layers",
    "top-5, or batch statistics",
    "published (or measured*), %",
    "difference",
    "rival",
    "ahead of rival",
    "s an epoch",
    "peak MB",
)
_SHOWN_LAYERS = 3
_Figure = TypeVar("_Figure")


def deviation_text(mean: float, deviation: float | None) -> str:
    """A mean with its deviation, two decimals.

    Example:
        >>> deviation_text(90.3, 0.21), deviation_text(90.3, None)
        ('90.30 ± 0.21', '90.30')
    """
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def published_text(figure: dict[str, Any]) -> str:
    """What others reached: a mean with its deviation, or a range.

    Args:
        figure: A layer's entry of a table, with `published`.
    """
    if "published_range" in figure:
        low, high = figure["published_range"]
        return f"{low:.2f} to {high:.2f}"
    return deviation_text(figure["published"], figure["published_sd"])


def change_text(share: float, less: str, more: str, digits: int = 0) -> str:
    """How much less (a share above 0) or more (below 0), in percent, with the word that is true.

    Example:
        >>> change_text(0.667, "fewer", "more"), change_text(-0.227, "saved", "more", 1)
        ('67 % fewer', '22.7 % more')
    """
    percent = round(100 * share, digits)
    return f"{abs(percent):.{digits}f} % {more if percent < 0 else less}"


def difference_text(row: dict[str, Any]) -> str:
    """Mean and deviation of a row's differences to its rival, and of how many seeds where not of all.

    Args:
        row: An entry of a table.

    Returns:
        Such as "+0.10 ± 0.12, all layers +0.31 ± 0.05": of the last layer, and of all together where there
        are several; empty where there is no rival.
    """
    if "rival_difference" not in row:
        return ""
    text = _signed(row["rival_difference"])
    if "rival_vote_difference" in row:
        text += f", all layers {_signed(row['rival_vote_difference'])}"
    count = row["rival_difference"]["n"]
    some = f" ({count} seed{'s' if count > 1 else ''})"
    return text if count == row["accuracy"][-1]["n"] else text + some


def _signed(found: dict[str, Any]) -> str:
    return f"{found['mean']:+.2f}" + ("" if found["sd"] is None else f" ± {found['sd']:.2f}")


def cells(row: dict[str, Any]) -> list[str]:
    """The texts of one row with figures, in the order of `COLUMNS`.

    Args:
        row: An entry of a table; needs `accuracy`.

    Returns:
        As many texts as there are columns; empty where there is nothing to say. Of deep networks the
        first three layers and the last are shown.
    """
    accuracy = row["accuracy"]
    epochs = f"{row['epochs']}" + (f" + {row['head_epochs']}" if row["head_epochs"] else "")
    has_published = any("published" in figure for figure in accuracy)
    memory = row.get("peak_memory_bytes")
    seconds = row["seconds_per_epoch"]["mean"]
    return [
        row["row"],
        row["data"],
        epochs,
        str(accuracy[0]["n"]),
        by_layer(accuracy, lambda f: deviation_text(f["mean"], f["sd"])),
        deviation_text(row["vote"]["mean"], row["vote"]["sd"]) if "vote" in row else "",
        _second_reading(row),
        by_layer(accuracy, _published) if has_published else "",
        by_layer(accuracy, _difference) if has_published else "",
        f"{row['rival']} {row['rival_accuracy']:.2f}" if "rival_difference" in row else "",
        difference_text(row),
        f"{seconds:.2g}" if seconds < 10 else f"{seconds:.0f}",
        "" if memory is None else f"{memory / 1e6:.0f}",
    ]


def _second_reading(row: dict[str, Any]) -> str:
    """A second accuracy of the same networks, top-5 or with batch statistics, by layer, after its name."""
    readings = [("top5_accuracy", "top-5"), ("test_accuracy_batch_statistics", "batch stat.")]
    if row["batch_statistics"]:
        readings.reverse()  # the reading that is compared
    for name, label in readings:
        if name in row:
            return f"{label} " + by_layer(row[name], lambda f: f"{f['mean']:.2f}")
    return ""


def missing(table: dict[str, Any]) -> list[tuple[str, str]]:
    """What a table lacks, and why: (rows in words, reason), rows of one reason together."""
    reasons: dict[str, list[str]] = {}
    for row in table["rows"]:
        if row["status"] == "done":
            continue
        if row["status"] == "partial":
            reason = f"only seeds {', '.join(map(str, row['seeds']))} are finished"
        elif row["status"] == "failed":
            reason = f"failed: {row['reason']}"
        else:  # not run or skipped: which of them depends on the data that a machine has
            reason = "no run of it yet"
        reasons.setdefault(reason, []).append(f"{row['row']} on {row['data']}")
    if table["measured"].get("unavailable"):
        reasons[table["measured"]["unavailable"]] = ["the measurement"]
    return [(_words(rows), reason) for reason, rows in reasons.items()]


def _words(rows: list[str]) -> str:
    return rows[0] if len(rows) == 1 else f"{len(rows)} rows ({rows[0]}, ... {rows[-1]})"


def by_layer(accuracy: list[_Figure], text: Callable[[_Figure], str]) -> str:
    """A text a layer, first layer first; of deep networks the first three and the last.

    Example:
        >>> by_layer([{"mean": 1.0}, {"mean": 2.0}], lambda figure: f"{figure['mean']:.0f}")
        '1 / 2'
    """
    if len(accuracy) <= _SHOWN_LAYERS + 1:
        return " / ".join(text(figure) for figure in accuracy)
    shown = [text(figure) for figure in accuracy[:_SHOWN_LAYERS]]
    return " / ".join([*shown, "…", text(accuracy[-1])])


def _published(figure: dict[str, Any]) -> str:
    if "published" not in figure:
        return "–"  # noqa: RUF001
    mark = "" if figure["is_published"] else "*"
    return published_text(figure) + mark


def _difference(figure: dict[str, Any]) -> str:
    return f"{figure['difference']:+.2f}" if "difference" in figure else "–"  # noqa: RUF001
