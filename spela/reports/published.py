"""The paper's figures and ours side by side: a table with a line a network and a column a dataset."""

from __future__ import annotations

from collections import Counter
from typing import Any

from spela.reports.cells import by_layer, deviation_text, published_text

__all__ = ["beside_published", "verdict"]

# By verdict: the mark after a difference.
_MARKS = {"within": "", "above": " ▲", "below": " ▼", "not judged": " ?"}


def verdict(figure: dict[str, Any]) -> str:
    """Whether our figure is the published one.

    Args:
        figure: A layer's entry of a table, with `published`.

    Returns:
        within (the difference is at most both deviations together; a published figure without one counts as
        exact), above, below, or not judged (ours is of one seed and has no deviation, or theirs is of other
        inputs).

    Example:
        >>> verdict({"mean": 94.0, "sd": 0.2, "published": 94.41, "published_sd": 0.49, "difference": -0.41})
        'within'
        >>> verdict({"mean": 94.0, "sd": 0.2, "published": 94.41, "published_sd": None, "difference": -0.41})
        'below'
    """
    if figure["sd"] is None or figure.get("other_inputs"):
        return "not judged"
    if abs(figure["difference"]) <= figure["sd"] + (figure["published_sd"] or 0.0):
        return "within"
    return "above" if figure["difference"] > 0 else "below"


def beside_published(table: dict[str, Any]) -> dict[str, Any] | None:
    """What of an experiment is published, beside ours.

    Args:
        table: From `read_tables`.

    Returns:
        `columns`, `rows` (a list of cells, each a list of lines; a row's rival comes after it) and
        `sentence`; None where nothing that was run is published.
    """
    epochs = table.get("epochs")  # of a call that said so
    compared = [(row, _compared(row, epochs is None)) for row in table["rows"]]
    found = [(row, figures) for row, figures in compared if figures]
    if not found:
        return None
    data = list(dict.fromkeys(row["data"] for row, _ in found))
    cells = {(row["row"], row["data"]): _lines(row, figures) for row, figures in found}
    in_pairs = dict.fromkeys(name for row, _ in found for name in (row["row"], row["rival"]))
    names = [name for name in in_pairs if name in {row["row"] for row, _ in found}]
    return {
        "columns": ["row", *data],
        "rows": [[[name], *(cells.get((name, column), []) for column in data)] for name in names],
        "sentence": _sentence(found)
        if epochs is None
        else f"Runs of --epochs {epochs} instead of the rows' own are not judged (?).",
    }


def _compared(row: dict[str, Any], has_own_epochs: bool) -> list[dict[str, Any]]:
    """Ours of the layers that have a published figure, read as theirs; with number and verdict."""
    accuracy = row.get("accuracy", [])
    own = row.get("test_accuracy_batch_statistics") if row.get("batch_statistics") else None
    return [
        both | {"layer": layer, "verdict": verdict(both) if has_own_epochs else "not judged"}
        for layer, (figure, ours) in enumerate(zip(accuracy, own or accuracy, strict=True), start=1)
        if (both := figure | ours).get("is_published")
    ]


def _lines(row: dict[str, Any], figures: list[dict[str, Any]]) -> list[str]:
    which = "" if len(figures) == len(row["accuracy"]) else _layers_text(figures)
    epochs = f"{row['epochs']} epoch{'s' * (row['epochs'] > 1)}"
    if row["head_epochs"]:
        epochs += f" + {row['head_epochs']} of the head"
    return [
        f"published{which} " + by_layer(figures, published_text),
        f"ours, {epochs}: " + by_layer(figures, lambda f: deviation_text(f["mean"], f["sd"])),
        by_layer(figures, lambda f: f"{f['difference']:+.2f}{_MARKS[f['verdict']]}"),
    ]


def _layers_text(figures: list[dict[str, Any]]) -> str:
    return f" (layer{'s' * (len(figures) > 1)} {', '.join(str(f['layer']) for f in figures)})"


def _sentence(found: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> str:
    """How many published figures hold, and a row's farthest miss."""
    rows_of: dict[tuple[str, ...], list[dict[str, Any]]] = {}  # by published figure
    for row, figures in found:
        for figure in figures:
            key = (row["data"], row["method"], published_text(figure))
            rows_of.setdefault(key, []).append(figure)
    nearest = [
        min(figures, key=lambda f: (f["verdict"] == "not judged", abs(f["difference"])))
        for figures in rows_of.values()
    ]
    count = Counter(figure["verdict"] for figure in nearest)
    others = sum(figure.get("other_inputs", False) for figure in nearest)
    one_seed = count["not judged"] - others
    judged = len(nearest) - count["not judged"]
    parts = []
    if judged:
        several = "; beside several rows the nearest counts" * (max(map(len, rows_of.values())) > 1)
        parts.append(
            f"Of {judged} published figure{'s' * (judged > 1)} with seeds enough to judge, "
            f"{count['within']} {_are(count['within'])} within both deviations, {count['above']} "
            f"{_are(count['above'])} exceeded (▲) and {count['below']} {_are(count['below'])} missed (▼)"
            f"{several}."
        )
    missed = [(row, f) for row, figures in found for f in figures if f["verdict"] == "below"]
    if missed:
        row, worst = min(missed, key=lambda pair: pair[1]["difference"])
        where = f"{row['row']} on {row['data']}, layer {worst['layer']}"
        parts.append(f"The farthest miss of a row is {worst['difference']:+.2f} points ({where}).")
    if one_seed:
        parts.append(f"{one_seed} of one seed {_are(one_seed)} not judged (?).")
    if others:
        parts.append(f"{others} of other inputs than ours {_are(others)} not judged (?).")
    return " ".join(parts)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
