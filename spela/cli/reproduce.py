"""`spela reproduce`: the paper's experiments, run into tables and a report."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spela.choices import EXPERIMENTS
from spela.cli.options import (
    COMPUTING,
    DATA,
    DataRoot,
    going_on,
    path_option,
    pick_device,
    refuse_unread,
)
from spela.files.text import did_you_mean

if TYPE_CHECKING:
    from spela.experiments.runner import Outcome

__all__ = ["reproduce_command"]

_RUNS, _RESULTS = "Which runs", "Results"


def _names(incomplete: str) -> list[str]:
    return [name for name in (*EXPERIMENTS, "all") if name.startswith(incomplete)]


def reproduce_command(
    name: Annotated[
        str,
        typer.Argument(
            help=f"Experiment to run: {', '.join(EXPERIMENTS)}; or all.",
            metavar="NAME",
            autocompletion=_names,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Datasets to use instead of the paper's, such as fashion-mnist,mnist.",
            metavar="NAMES",
            rich_help_panel=_RUNS,
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Seeds, each a run of every row (default: 0,1,2).",
            metavar="NUMBERS",
            rich_help_panel=_RUNS,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the training data (default: each row's own).", rich_help_panel=_RUNS
        ),
    ] = None,
    rows: Annotated[
        str,
        typer.Option(
            help="Run only rows whose name matches, such as 'best*'; the table shows of the others "
            "what is finished.",
            metavar="PATTERN",
            rich_help_panel=_RUNS,
        ),
    ] = "*",
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Run tiny networks on digits: a check that it works, no results.",
            rich_help_panel=_RUNS,
        ),
    ] = False,
    jobs: Annotated[
        int,
        typer.Option(
            help="Number of runs at a time, of one thread each; results do not depend on it.",
            rich_help_panel=COMPUTING,
        ),
    ] = 1,
    out: Annotated[
        Path,
        path_option(
            help="Folder of the results: finished runs in it are kept, and a table has what its last "
            "call asked for (with --report-only, what it had besides, too).",
            panel=_RESULTS,
        ),
    ] = Path("results"),
    data_root: DataRoot = None,
    download: Annotated[
        bool,
        typer.Option(
            "--download", help="Download datasets that are not here.", rich_help_panel=DATA
        ),
    ] = False,
    page: Annotated[
        Path | None,
        path_option(
            help="Bring the main table between this file's results:begin and results:end up to date; "
            "rows that other folders know better stay.",
            panel=_RESULTS,
        ),
    ] = None,
    readme: Annotated[
        Path | None,
        path_option(
            help="Bring its headline rows between this file's summary:begin and summary:end up to date, "
            "too (needs --page).",
            panel=_RESULTS,
        ),
    ] = None,
    report_only: Annotated[
        bool,
        typer.Option(
            "--report-only",
            help="Run nothing: write tables, report (and pages) of the runs that are finished.",
            rich_help_panel=_RESULTS,
        ),
    ] = False,
    publish_to: Annotated[
        Path | None,
        path_option(
            "--publish",
            help="Also add the finished runs that this call asks for, without weights, to this folder, and "
            "make their experiments' tables and the report there anew; its other runs and tables stay.",
            panel=_RESULTS,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="Device to compute on: cpu, cuda, ... Results differ by device.",
            metavar="NAME",
            rich_help_panel=COMPUTING,
        ),
    ] = "cpu",
) -> None:
    """Run the paper's experiments into tables and a report; finished runs are kept."""
    from spela.experiments.plan import Options
    from spela.experiments.publish import check_target, publish
    from spela.experiments.registry import find_experiments
    from spela.experiments.reproduce import rebuild, reproduce
    from spela.experiments.runner import writing_results
    from spela.reports import check_pages, update_pages, write_pages
    from spela_kernels.workers import check_workers

    options = Options(
        out=out,
        seeds=_seeds(seeds, quick),
        data=_data(data),
        epochs=epochs,
        quick=quick,
        rows=rows,
        data_root=data_root,
        download=download,
        device=str(pick_device(device)),
    )
    check_workers(jobs, "--jobs")
    if report_only:
        refuse_unread(
            "--report-only, which trains nothing",
            jobs=None if jobs == 1 else jobs,
            download=download or None,
        )
    experiments = find_experiments(name)
    names = [row.name for experiment in experiments for row in experiment.rows]
    if rows != "*" and not any(fnmatchcase(row, rows) for row in names):
        raise ValueError(
            f"--rows {rows!r} matches no row of {name}: {did_you_mean(rows, names)}patterns are the shell's"
        )
    if readme is not None and page is None:
        raise ValueError("--readme takes its rows from --page: say where the main table is")
    if page is not None:
        if epochs is not None:
            raise ValueError("--epochs makes other rows than the page's: leave --page out")
        check_pages(page, readme, options)
    if publish_to is not None:
        if quick:
            raise ValueError("--quick makes no results: leave --publish out")
        if epochs is not None:
            raise ValueError(
                "--epochs makes other runs than the experiments declare: leave --publish out"
            )
        check_target(options, publish_to)
    if quick:
        typer.echo("QUICK CHECK: tiny networks on scikit-learn's digits. These are not results.")
    failed = figures = 0
    busy: list[str] = []
    fresh: list[str] = []  # experiments whose tables this call made from their runs

    def note(outcome: Outcome, done: int, total: int) -> None:
        _print_outcome(outcome, done, total)
        if outcome.status == "busy":
            busy.append(outcome.key)

    with writing_results(options):
        for experiment in experiments:
            if report_only:
                if rebuild(experiment, options) is not None:
                    fresh.append(experiment.name)
                continue
            typer.echo(f"== {experiment.name}: {experiment.title}")
            with going_on(lambda: "the same command goes on"):
                table = reproduce(experiment, options, jobs, note)
            fresh.append(experiment.name)
            _print_table(table)
            figures += sum(row["status"] not in ("skipped", "not run") for row in table["rows"])
            figures += bool(table["measured"])
            failed += sum(
                row["status"] == "failed" and fnmatchcase(row["row"], rows) for row in table["rows"]
            )
        if report_only and not fresh:
            raise ValueError(
                f"no run that this call asks for is finished in {options.folder}: nothing was written"
            )
        html, markdown = write_pages(options)
    typer.echo(f"report: {html}\n        {markdown}")
    if publish_to is not None:
        fresh = publish(experiments, options, publish_to)
        options = replace(options, out=publish_to)
        typer.echo(f"published: {write_pages(options)[1]}")
    if page is not None:
        update_pages(page, readme, options, fresh)
        typer.echo(f"main table: {page}")
    if busy:
        raise ValueError(
            f"other processes are writing to {len(busy)} runs ({busy[0]}, ...): wait until they end; the "
            "same command then goes on"
        )
    if failed:
        raise ValueError(
            f"{failed} rows failed (reasons above and in {options.folder}); the same command tries "
            "them again and keeps the others"
        )
    if not (figures or report_only):
        raise ValueError(
            f"no row has a figure (reasons above): {options.folder} has its table and report"
        )


def _seeds(text: str | None, quick: bool) -> tuple[int, ...]:
    if text is None:
        return (0,) if quick else (0, 1, 2)
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--seeds must be numbers such as 0,1,2, got {text!r}") from None


def _data(text: str | None) -> tuple[str, ...]:
    names = () if text is None else tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise ValueError(f"--data must be names or files such as mnist,cifar10, got {text!r}")
    return names


def _print_outcome(outcome: Outcome, done: int, total: int) -> None:
    line = f"[{done}/{total}] {outcome.key}: {outcome.status}, {outcome.seconds:.1f} s"
    typer.echo(line + (f": {outcome.error}" if outcome.error else ""))


def _print_table(table: dict[str, Any]) -> None:
    from spela.reports.cells import difference_text

    reasons: dict[str, int] = {}
    for row in table["rows"]:
        if row["status"] in ("skipped", "not run"):
            reason = row["reason"] if row["status"] == "skipped" else "not run yet"
            reasons[reason] = reasons.get(reason, 0) + 1
            continue
        line = f"{row['row']:<42} {row['data']:<14} "
        if "accuracy" in row:
            line += " / ".join(_figure(figure) for figure in row["accuracy"])
            if "rival_difference" in row:
                line += f"  ({difference_text(row)} to {row['rival']})"
        if row["status"] != "done":
            line += f" {row['status']}" + (f": {row['reason']}" if row["reason"] else "")
        typer.echo(line)
    for reason, count in reasons.items():
        typer.echo(f"without figures: {count} rows: {reason}")
    if "unavailable" in table["measured"]:
        typer.echo(f"not measured: {table['measured']['unavailable']}")


def _figure(figure: dict[str, Any]) -> str:
    text = f"{figure['mean']:.2f}"
    if figure["sd"] is not None:
        text += f"+-{figure['sd']:.2f}"
    if "published" in figure:
        text += f" [{figure['published']:g}]"
    return text
