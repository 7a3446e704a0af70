"""The paper's figures and ours side by side: a table with a line a network and a column a dataset."""

from __future__ import annotations

from typing import Any

from spela.reports.cells import by_layer, deviation_text

__all__ = ["beside_published", "verdict"]

# By verdict: the mark after a difference, and the word for how many there are.
_MARKS = {"within": "", "above": " ▲", "below": " ▼", "one seed": " ?"}


def verdict(figure: dict[str, Any]) -> str:
    """Whether our figure is the published one.

    Args:
        figure: A layer's entry of a table, with `published`.

    Returns:
        within (the difference is at most both deviations together; a published figure without one counts as
        exact), above, below, or one seed (ours has no deviation, so nothing can be said).

    Example:
        >>> verdict({"mean": 94.0, "sd": 0.2, "published": 94.41, "published_sd": 0.49, "difference": -0.41})
        'within'
        >>> verdict({"mean": 94.0, "sd": 0.2, "published": 94.41, "published_sd": None, "difference": -0.41})
        'below'
    """
    if figure["sd"] is None:
        return "one seed"
    if abs(figure["difference"]) <= figure["sd"] + (figure["published_sd"] or 0.0):
        return "within"
    return "above" if figure["difference"] > 0 else "below"


def beside_published(table: dict[str, Any]) -> dict[str, Any] | None:
    """What of an experiment is published, beside ours.

    Args:
        table: From `read_tables`.

    Returns:
        `columns`, `rows` (a list of cells, each a list of lines) and `sentence`; None where nothing that was
        run is published.
    """
    found = [row for row in table["rows"] if any(map(_is_published, row.get("accuracy", ())))]
    if not found:
        return None
    data = list(dict.fromkeys(row["data"] for row in found))
    cells = {(row["row"], row["data"]): _lines(row) for row in found}
    names = list(dict.fromkeys(row["row"] for row in found))
    return {
        "columns": ["row", *data],
        "rows": [[[name], *(cells.get((name, column), []) for column in data)] for name in names],
        "sentence": _sentence(found),
    }


def _is_published(figure: dict[str, Any]) -> bool:
    return bool(figure.get("is_published"))


def _ours(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Our figures by layer as those that are compared: with batch statistics where theirs are read so."""
    own = row.get("test_accuracy_batch_statistics") if row["batch_statistics"] else None
    return [f | o for f, o in zip(row["accuracy"], own or row["accuracy"], strict=True)]


def _lines(row: dict[str, Any]) -> list[str]:
    layers = [figure for figure in _ours(row) if _is_published(figure)]
    epochs = row["epochs"] + row["head_epochs"]
    places = [n for n, figure in enumerate(row["accuracy"], start=1) if _is_published(figure)]
    which = "" if len(places) == len(row["accuracy"]) else _layers_text(places)
    return [
        f"published{which} "
        + by_layer(layers, lambda f: deviation_text(f["published"], f["published_sd"])),
        f"ours, {epochs} epoch{'s' * (epochs > 1)}: "
        + by_layer(layers, lambda f: deviation_text(f["mean"], f["sd"])),
        by_layer(layers, lambda f: f"{f['difference']:+.2f}{_MARKS[verdict(f)]}"),
    ]


def _layers_text(places: list[int]) -> str:
    return f" (layer{'s' * (len(places) > 1)} {', '.join(map(str, places))})"


def _sentence(rows: list[dict[str, Any]]) -> str:
    """How many figures hold, and the farthest miss."""
    all_of_them = [
        (figure, f"{row['row']} on {row['data']}, layer {number}")
        for row in rows
        for number, figure in enumerate(_ours(row), start=1)
        if _is_published(figure)
    ]
    verdicts = [verdict(figure) for figure, _ in all_of_them]
    count = {name: verdicts.count(name) for name in _MARKS}
    judged = len(verdicts) - count["one seed"]
    parts = []
    if judged:
        parts.append(
            f"Of {judged} published figure{'s' * (judged > 1)} with seeds enough to judge, "
            f"{count['within']} {_are(count['within'])} within both deviations, {count['above']} "
            f"{_are(count['above'])} exceeded (▲) and {count['below']} {_are(count['below'])} missed (▼)."
        )
    if count["below"]:
        worst, where = min(
            (pair for pair, v in zip(all_of_them, verdicts, strict=True) if v == "below"),
            key=lambda pair: pair[0]["difference"],
        )
        parts.append(f"The farthest miss is {worst['difference']:+.2f} points ({where}).")
    if count["one seed"]:
        one = count["one seed"]
        parts.append(f"{one} of one seed {_are(one)} not judged (?).")
    return " ".join(parts)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
