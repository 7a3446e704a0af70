"""The experiments' report: OUT/report.html and OUT/report.md from the tables of a results folder."""

from __future__ import annotations

import base64
import hashlib
import io
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spela.experiments.plan import Options
from spela.experiments.registry import EXPERIMENTS
from spela.experiments.tables import picture_path, read_tables
from spela.files.atomic import write_atomically
from spela.reports.cells import COLUMNS, cells, change_text, deviation_text, missing
from spela.reports.published import beside_published
from spela.reports.rendering import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_pages"]


def write_pages(options: Options) -> tuple[Path, Path]:
    """Write the report of everything in a results folder: one HTML page, one Markdown page, the plots.

    Args:
        options: Where the results are.

    Returns:
        Paths of the HTML page, which needs no other file, and of the Markdown page, which shows plots/*.png.

    Raises:
        ValueError: If there is no table, or one cannot be read.
        OSError: If the folder cannot be written.
    """
    tables = read_tables(options, list(EXPERIMENTS))
    if not tables:
        raise ValueError(f"{options.folder} holds no table: run `spela reproduce NAME` first")
    plots = options.folder / "plots"
    plots.mkdir(exist_ok=True)
    sections = [_section(table, options, plots) for table in tables]
    context = {
        "title": "QUICK CHECK of the experiments: NOT RESULTS"
        if options.quick
        else "SPELA: the paper's experiments",
        "quick": options.quick,
        "columns": COLUMNS,
        "sections": sections,
        "absent": [name for name in EXPERIMENTS if name not in {t["experiment"] for t in tables}],
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}",
    }
    pages = []
    for name, template in (("report.html", "experiments.html"), ("report.md", "experiments.md")):
        path = options.folder / name
        write_atomically(path, render(template, **context))
        pages.append(path)
    return pages[0], pages[1]


def _section(table: dict[str, Any], options: Options, plots: Path) -> dict[str, Any]:
    # Here, because they import matplotlib, which a model's card and a table's cells need not wait for.
    from spela.reports.geometry import layers_figure, layers_runs
    from spela.reports.plots import table_figures

    runs = options.folder / "runs"
    figures = []
    for name, caption, figure in table_figures(table, runs):
        figures.append(_saved(plots / f"{_file_name(name)}.png", caption, figure))
    able = layers_runs(table) if table["experiment"] in ("mlp", "cnn") else []
    # A published folder has pictures and no weights: those that are there, or else that of the first run
    # with a folder.
    there = [key for key in able if picture_path(options, key).exists()]
    for key in there or [key for key in able if (runs / key).exists()][:1]:
        path = picture_path(options, key)
        caption = f"t-SNE of test samples in the layers' outputs, before and after training ({key})"
        try:
            # It takes seconds, and a finished run does not change.
            drawn = (
                None
                if path.exists()
                else layers_figure(runs, key, options.data_root, options.quick)
            )
            figures.append(_saved(path, caption, drawn))
        except ValueError as error:
            figures.append({"caption": f"{caption}: not drawn, {error}", "data": "", "file": ""})
    done = [row for row in table["rows"] if "accuracy" in row]
    return {
        "name": table["experiment"],
        "title": table["title"],
        "source": table["source"],
        "published": beside_published(table),
        "rows": [cells(row) for row in done],
        "figures": figures,
        "missing": missing(table),
        "exits": _exit_lines(table["measured"]),
        "memory": _memory_lines(table) if table["measure"] == "memory" else [],
        "threads": table["measured"].get("threads"),
    }


def _saved(path: Path, caption: str, figure: Figure | None) -> dict[str, str]:
    if figure is not None:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        write_atomically(path, buffer.getvalue())
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return {"caption": caption, "data": data, "file": f"plots/{path.name}"}


def _file_name(name: str) -> str:
    """Of the letters that every file system takes, and of a digest where there is none."""
    letters = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-")
    return letters or hashlib.sha256(name.encode()).hexdigest()[:12]


def _memory_lines(table: dict[str, Any]) -> list[list[str]]:
    """One line a network and method: memory, time and multiply-adds of a step, and beside backprop's."""
    points = table["measured"].get("points", [])
    backprop = {(p["depth"], p["width"]): p for p in points if p["method"] == "backprop"}
    lines = []
    for p in points:
        whole = backprop[p["depth"], p["width"]]
        lines.append(
            [
                f"{p['depth']:g} x {p['width']:g}",
                p["method"].replace("_", " "),
                f"{p['peak_bytes'] / 1e6:.1f}",
                f"{p['peak_bytes'] / whole['peak_bytes']:.2f}",
                f"{p['step_ms']:.1f}",
                f"{p['step_ms'] / whole['step_ms']:.2f}",
                f"{p['multiply_adds'] / 1e9:.2f}",
                f"{p['multiply_adds'] / whole['multiply_adds']:.2f}",
            ]
        )
    return lines


def _exit_lines(measured: dict[str, Any]) -> list[list[str]]:
    """One line a run: the thresholds of its halves, and what they save or add."""
    return [
        [
            f"{c['row']}, {c['data']}, seed {c['seed']}",
            "; ".join(
                ", ".join("never" if t is None else f"{t:.3f}" for t in half)
                for half in c["thresholds"]
            ),
            deviation_text(c["full_accuracy"], None),
            deviation_text(c["accuracy"], None),
            f"{c['accuracy'] - c['full_accuracy']:+.2f}",
            change_text(1 - c["multiply_adds"], "fewer", "more", 1),
            f"{c['full_ms']:.0f} / {c['ms']:.0f} ms",
            change_text(1 - c["ms"] / c["full_ms"], "less", "more"),
        ]
        for c in measured.get("halves", [])
    ]
