"""`spela reproduce`: the paper's experiments, run into tables and a report."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from spela.cli import reproduce_options as option
from spela.cli.options import DataRoot, going_on, pick_device, refuse_unread
from spela.files.text import did_you_mean

if TYPE_CHECKING:
    from spela.experiments.declare import Experiment
    from spela.experiments.plan import Options
    from spela.experiments.runner import Outcome

__all__ = ["reproduce_command"]


def reproduce_command(
    name: option.Name,
    data: option.Data = None,
    seeds: option.Seeds = None,
    epochs: option.Epochs = None,
    rows: option.Rows = "*",
    quick: option.Quick = False,
    jobs: option.Jobs = 1,
    out: option.Out = Path("results"),
    data_root: DataRoot = None,
    download: option.Download = False,
    page: option.Page = None,
    readme: option.Readme = None,
    report_only: option.ReportOnly = False,
    publish_to: option.PublishTo = None,
    device: option.Device = "cpu",
) -> None:
    """Run the paper's experiments into tables and a report; finished runs are kept."""
    from spela.experiments.plan import Options
    from spela.experiments.publish import publish
    from spela.experiments.registry import find_experiments
    from spela.experiments.reproduce import rebuild
    from spela.experiments.runner import writing_results
    from spela.reports import update_pages, write_pages
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
    _check_rows(name, experiments, rows)
    _check_pages(page, readme, options)
    if publish_to is not None:
        _check_publishing(publish_to, options)
    if quick:
        typer.echo("QUICK CHECK: tiny networks on scikit-learn's digits. These are not results.")

    busy: list[str] = []
    with writing_results(options):
        if report_only:
            found = [rebuild(experiment, options) for experiment in experiments]
            tables = [table for table in found if table is not None]
            if not tables:
                raise ValueError(
                    f"no run that this call asks for is finished in {options.folder}: nothing was written"
                )
        else:
            tables, busy = _run(experiments, options, jobs)
        html, markdown = write_pages(options)
    typer.echo(f"report: {html}\n        {markdown}")
    fresh = [table["experiment"] for table in tables]  # made by this call from their runs
    shown = options
    if publish_to is not None:
        fresh = publish(experiments, options, publish_to)
        shown = replace(options, out=publish_to)
        typer.echo(f"published: {write_pages(shown)[1]}")
    if page is not None:
        update_pages(page, readme, shown, fresh)
        typer.echo(f"main table: {page}")
    if not report_only:
        _check_outcome(tables, busy, options)


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


def _check_rows(name: str, experiments: list[Experiment], pattern: str) -> None:
    """Refuse a pattern that no row matches."""
    names = [row.name for experiment in experiments for row in experiment.rows]
    if pattern != "*" and not any(fnmatchcase(row, pattern) for row in names):
        raise ValueError(
            f"--rows {pattern!r} matches no row of {name}: {did_you_mean(pattern, names)}patterns are the "
            "shell's"
        )


def _check_pages(page: Path | None, readme: Path | None, options: Options) -> None:
    """Refuse pages that could not be brought up to date: before the runs, which may take days."""
    from spela.reports import check_pages

    if readme is not None and page is None:
        raise ValueError("--readme takes its rows from --page: say where the main table is")
    if page is not None:
        if options.epochs is not None:
            raise ValueError("--epochs makes other rows than the page's: leave --page out")
        check_pages(page, readme, options)


def _check_publishing(target: Path, options: Options) -> None:
    """Refuse to publish what is no result, or to where it cannot stand: before the runs, too."""
    from spela.experiments.publish import check_target

    if options.quick:
        raise ValueError("--quick makes no results: leave --publish out")
    if options.epochs is not None:
        raise ValueError(
            "--epochs makes other runs than the experiments declare: leave --publish out"
        )
    check_target(options, target)


def _run(
    experiments: list[Experiment], options: Options, jobs: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run the experiments and print what comes of them: their tables, and runs that others are writing to."""
    from spela.experiments.reproduce import reproduce

    tables: list[dict[str, Any]] = []
    busy: list[str] = []

    def note(outcome: Outcome, done: int, total: int) -> None:
        _print_outcome(outcome, done, total)
        if outcome.status == "busy":
            busy.append(outcome.key)

    for experiment in experiments:
        typer.echo(f"== {experiment.name}: {experiment.title}")
        with going_on(lambda: "the same command goes on"):
            tables.append(reproduce(experiment, options, jobs, note))
        _print_table(tables[-1])
    return tables, busy


def _check_outcome(tables: list[dict[str, Any]], busy: list[str], options: Options) -> None:
    """Refuse to end as a success where runs are missing, failed, or none left a figure."""
    if busy:
        raise ValueError(
            f"other processes are writing to {len(busy)} runs ({busy[0]}, ...): wait until they end; the "
            "same command then goes on"
        )
    rows = [row for table in tables for row in table["rows"]]
    failed = sum(
        row["status"] == "failed" and fnmatchcase(row["row"], options.rows) for row in rows
    )
    if failed:
        raise ValueError(
            f"{failed} rows failed (reasons above and in {options.folder}); the same command tries "
            "them again and keeps the others"
        )
    has_figures = any(row["status"] not in ("skipped", "not run") for row in rows)
    if not has_figures and not any(table["measured"] for table in tables):
        raise ValueError(
            f"no row has a figure (reasons above): {options.folder} has its table and report"
        )


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
