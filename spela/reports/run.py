"""A run's report: DIR/report.html, a self-contained page, and its plots as PNG files."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from spela.data import Dataset
from spela.experiments import LoadedRun
from spela.files.atomic import write_atomically
from spela.reports.cells import by_layer
from spela.reports.lettering import drawable
from spela.reports.looks import Looks, look_at
from spela.reports.rendering import render
from spela.reports.run_figures import (
    confusion_figure,
    curve_figures,
    diagnostic_figures,
    geometry_figure,
)
from spela.reports.samples import sample_cards
from spela.reports.settings import changed_settings, other_settings
from spela.reports.step_memory import memory_line
from spela.reports.words import answer_names, counted, duration, makers, size, what_happened
from spela.training import RunConfig, RunFolder, evaluate, extension_note, read_evidence

__all__ = ["write_report"]


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
    config = RunConfig.from_dict(summary["config"])
    names = answer_names(config, len(summary["test_accuracy"]))
    confusion = evaluate(run.net, dataset.test_x, dataset.test_y).confusion
    most_frequent = float(confusion.sum(dim=1).max() / confusion.sum())
    looks = look_at(run, dataset, names)
    samples = sample_cards(looks, dataset, names)
    (folder.path / "plots").mkdir(exist_ok=True)
    figures = _figures(records, names, confusion, looks, drawable(dataset.class_names))
    page = render(
        "run.html",
        title=f"SPELA run {folder.path.name}",
        sentence=what_happened(config, records, len(dataset.test_y), most_frequent),
        config=config,
        summary=summary,
        names=names,
        counted=counted,
        size=size,
        seconds=duration(summary["seconds_per_epoch"]),
        took=duration(math.fsum(record["seconds"] for record in records)),
        extension=extension_note(config, summary.get("extended_at", [])),
        memory=memory_line(config, summary, dataset),
        made_by=makers(summary.get("made_by", [{"torch": summary["torch"]}])),
        samples=samples,
        where_from=_where_from(looks, dataset, samples),
        groups=[
            (title, [_saved(folder.path / "plots", *figure) for figure in group])
            for title, group in figures
            if group
        ],
        epochs=[_epoch(record) for record in records],
        changed=[
            (name, _text(value), _text(usual)) for name, value, usual in changed_settings(config)
        ],
        others=[(name, _text(value)) for name, value in other_settings(config)],
    )
    write_atomically(folder.report, page)
    return folder.report


def _figures(
    records: list[dict[str, Any]],
    names: list[str],
    confusion: Any,
    looks: Looks,
    classes: Sequence[str],
) -> list[tuple[str, list[tuple[str, str, Figure]]]]:
    """The page's plots in groups: (title, [(file name without ending, what it shows, figure)])."""
    return [
        ("By epoch", curve_figures(records, names)),
        ("Layers on fixed training samples", diagnostic_figures(records, names)),
        (
            "Confusion of the last layer",
            [("confusion", "Confusion matrix", confusion_figure(confusion, classes))],
        ),
        (
            f"Class geometry ({counted(len(looks.index), 'test sample')})",
            [
                (
                    f"geometry-{look.name.replace(' ', '-')}",
                    f"Class geometry of {look.name}",
                    geometry_figure(look, looks.labels, classes),
                )
                for look in looks.layers
                if bool(look.outputs.isfinite().all())
            ],
        ),
    ]


def _where_from(looks: Looks, dataset: Dataset, samples: list[dict[str, Any]]) -> str:
    """Where the samples on the page come from, in words."""
    seen, total = len(looks.index), len(dataset.test_y)
    of_these = f"all {total:,}" if seen == total else f"{seen:,} at equal distances among {total:,}"
    misread = int((looks.answers[-1] != looks.labels).sum())
    text = f"Of {of_these} test samples the last layer misreads {misread or 'none'}"
    shown = sum(sample["misread"] for sample in samples)
    return f"{text}; {shown} of them are here, first." if shown else f"{text}."


def _saved(plots: Path, name: str, shows: str, figure: Figure) -> dict[str, str]:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    write_atomically(plots / f"{name}.png", buffer.getvalue())
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"name": name, "shows": shows, "data": data}


def _epoch(record: dict[str, Any]) -> list[str]:
    """A row of the page's table: epoch, accuracies in %, losses, time."""
    return [
        str(record["epoch"]),
        by_layer(record["test_accuracy"], lambda share: f"{100 * share:.2f}"),
        by_layer(record["train_loss"], lambda loss: f"{loss:.4f}"),
        duration(record["seconds"]),
    ]


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        "none" if value in ("", None) else f"{value:g}" if isinstance(value, float) else str(value)
    )
