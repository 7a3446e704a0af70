"""The options of `spela reproduce`: which runs, how they are computed, and where their results go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spela.choices import EXPERIMENTS
from spela.cli.options import COMPUTING, DATA, path_option

__all__ = [
    "Data",
    "Device",
    "Download",
    "Epochs",
    "Jobs",
    "Name",
    "Out",
    "Page",
    "PublishTo",
    "Quick",
    "Readme",
    "ReportOnly",
    "Rows",
    "Seeds",
]

# Headings of help.
_RUNS, _RESULTS = "Which runs", "Results"


def _names(incomplete: str) -> list[str]:
    return [name for name in (*EXPERIMENTS, "all") if name.startswith(incomplete)]


Name = Annotated[
    str,
    typer.Argument(
        help=f"Experiment to run: {', '.join(EXPERIMENTS)}; or all.",
        metavar="NAME",
        autocompletion=_names,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Datasets to use instead of the paper's, such as fashion-mnist,mnist.",
        metavar="NAMES",
        rich_help_panel=_RUNS,
    ),
]
Seeds = Annotated[
    str | None,
    typer.Option(
        help="Seeds, each a run of every row (default: 0,1,2).",
        metavar="NUMBERS",
        rich_help_panel=_RUNS,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        help="Passes over the training data (default: each row's own).", rich_help_panel=_RUNS
    ),
]
Rows = Annotated[
    str,
    typer.Option(
        help="Run only rows whose name matches, such as 'best*'; the table shows of the others "
        "what is finished.",
        metavar="PATTERN",
        rich_help_panel=_RUNS,
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="Run tiny networks on digits: a check that it works, no results.",
        rich_help_panel=_RUNS,
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        help="Number of runs at a time, of one thread each; results do not depend on it.",
        rich_help_panel=COMPUTING,
    ),
]
Out = Annotated[
    Path,
    path_option(
        help="Folder of the results: finished runs in it are kept, and a table has what its last "
        "call asked for (with --report-only, what it had besides, too).",
        panel=_RESULTS,
    ),
]
Download = Annotated[
    bool,
    typer.Option("--download", help="Download datasets that are not here.", rich_help_panel=DATA),
]
Page = Annotated[
    Path | None,
    path_option(
        help="Bring the main table between this file's results:begin and results:end up to date; "
        "rows that other folders know better stay.",
        panel=_RESULTS,
    ),
]
Readme = Annotated[
    Path | None,
    path_option(
        help="Bring its headline rows between this file's summary:begin and summary:end up to date, "
        "too (needs --page).",
        panel=_RESULTS,
    ),
]
ReportOnly = Annotated[
    bool,
    typer.Option(
        "--report-only",
        help="Run nothing: write tables, report (and pages) of the runs that are finished.",
        rich_help_panel=_RESULTS,
    ),
]
PublishTo = Annotated[
    Path | None,
    path_option(
        "--publish",
        help="Also add the finished runs that this call asks for, without weights, to this folder, and "
        "make their experiments' tables and the report there anew; its other runs and tables stay.",
        panel=_RESULTS,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="Device to compute on: cpu, cuda, ... Results differ by device.",
        metavar="NAME",
        rich_help_panel=COMPUTING,
    ),
]
