"""From a results folder to a published one: its tables, and the records of their runs, without weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from spela.experiments.archive import find_run, read_archives, write_archive
from spela.experiments.declare import Experiment
from spela.experiments.measures import MEASURED_OF_RUNS
from spela.experiments.plan import Job, Options, plan
from spela.experiments.reproduce import rebuild
from spela.experiments.runner import finished_summary, run_folder, writing_results
from spela.experiments.tables import picture_path, read_tables, with_kept

__all__ = ["check_target", "publish"]


def check_target(options: Options, target: Path) -> None:
    """Refuse a folder that a results folder cannot be published to: before its runs, which may take days.

    Args:
        options: Where the results are.
        target: The published folder, which need not be there.

    Raises:
        ValueError: If it is a file or the results folder.
    """
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file: give --publish a folder")
    if target.resolve() == options.out.resolve():
        raise ValueError(f"{target} holds the results themselves: publish to another folder")


def publish(experiments: list[Experiment], options: Options, target: Path) -> list[str]:
    """Add the finished runs that a call asked for to a published folder, and make their tables there anew.

    A run that several experiments share is in one file, of the first that was published with it.

    Args:
        experiments: Those of the call; what the folder has of others stays as it is.
        options: Where the results are, with which seeds and data.
        target: The published folder; what it has of other runs stays.

    Returns:
        Names of the experiments whose tables were made anew.

    Raises:
        ValueError: If a run's files disagree, an archive is damaged, or runs of two kinds of device would
            stand in one table; or as `check_target`.
    """
    check_target(options, target)
    published = replace(options, out=target)
    made = []
    with writing_results(published):
        for experiment in experiments:
            asked = [job for job in plan(experiment, options) if job.wanted]
            finished = {job.key for job in asked if _device(job, options)}
            kept = with_kept(experiment, published, plan(experiment, published))
            _check_devices(
                {_device(job, options) for job in asked}, {_device(job, published) for job in kept}
            )
            _archive(experiment.name, finished, options, published)
            found, before = (
                {} if not tables else tables[0]["measured"]
                for tables in (read_tables(o, [experiment.name]) for o in (options, published))
            )
            measured = _measured(before, found, finished)
            if (finished or not experiment.rows) and rebuild(experiment, published, measured):
                made.append(experiment.name)
            # Drawn from weights, which are not published.
            for key in finished:
                drawn = picture_path(options, key)
                if drawn.exists():
                    picture_path(published, key).parent.mkdir(exist_ok=True)
                    shutil.copyfile(drawn, picture_path(published, key))
    return made


def _device(job: Job, options: Options) -> str:
    """The kind of device that a finished run was made on; "" of one that is not finished."""
    summary = finished_summary(run_folder(options, job.key), job.config)
    return "" if summary is None else str(summary["device"]).partition(":")[0]


def _check_devices(asked: set[str], kept: set[str]) -> None:
    kinds = sorted((asked | kept) - {""})
    if len(kinds) > 1:
        raise ValueError(
            f"runs made on {' and '.join(kinds)} would stand in one table, and accuracy, times and memory "
            "differ by device: publish one of them to another folder"
        )


def _archive(name: str, finished: set[str], options: Options, published: Options) -> None:
    """Write finished runs to the files that have them, and those that are in none to the experiment's."""
    runs, kept = options.folder / "runs", published.folder / "runs"
    home = {key: file for file, lines in read_archives(kept).items() for key in lines}
    home |= {key: home.get(key, name) for key in finished}
    for file in {home[key] for key in finished}:
        keys = [key for key in home if home[key] == file]
        found = [find_run(runs if key in finished else kept, key) for key in keys]
        write_archive(kept / f"{file}.jsonl", found)


def _measured(before: dict[str, Any], found: dict[str, Any], finished: set[str]) -> dict[str, Any]:
    """What was measured, of one run after the other where its entries name runs, and else as a whole.

    Runs are published without weights: what is lost of them is not measured again.
    """
    if "points" not in found:
        return before or found
    published = {None, *finished}
    joined = dict(found)
    for part in MEASURED_OF_RUNS:
        anew = [entry for entry in found.get(part, []) if entry.get("run") in published]
        again = {entry.get("run") for entry in anew}
        kept = [entry for entry in before.get(part, []) if entry.get("run") not in again]
        if part in found:
            joined[part] = kept + anew
    return joined
