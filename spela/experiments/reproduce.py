"""One experiment from its plan to its table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spela.experiments.declare import Experiment
from spela.experiments.measures import MEASURED_OF_RUNS, measure
from spela.experiments.plan import Options, plan
from spela.experiments.runner import Outcome, run_jobs, writing_results
from spela.experiments.tables import build_table, with_kept, write_table

__all__ = ["rebuild", "reproduce"]


def reproduce(
    experiment: Experiment,
    options: Options,
    processes: int = 1,
    on_outcome: Callable[[Outcome, int, int], None] | None = None,
) -> dict[str, Any]:
    """Run what an experiment still needs and write OUT/NAME.json.

    Args:
        experiment: From the registry.
        options: What to run, and where.
        processes: Runs at a time.
        on_outcome: Told of every run as it ends.

    Returns:
        The table. Runs that failed are in it with their reason.

    Raises:
        ValueError: If something asked for is unknown or out of range, the files of a finished run disagree,
            or another process is writing to the results folder.
    """
    jobs = plan(experiment, options)
    with writing_results(options):
        run_jobs(jobs, options, processes, on_outcome)
        table = build_table(experiment, options, jobs)
        write_table(options, table)
        if experiment.measure:
            table["measured"] = measure(experiment, options, jobs, table["measured"])
            write_table(options, table)
    return table


def rebuild(
    experiment: Experiment, options: Options, measured: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """Write OUT/NAME.json anew from the finished runs that are there; run and measure nothing.

    Finished rows of data and seeds that were not asked for stay.

    Args:
        experiment: From the registry.
        options: Which data and seeds, and where.
        measured: The measured part; None: the one of the table that is there.

    Returns:
        The table; None, and nothing is written, where no run that was asked for is finished, or nothing is
        measured of an experiment without runs.

    Raises:
        ValueError: As `reproduce`.
    """
    jobs = plan(experiment, options)
    with writing_results(options):
        table = build_table(experiment, options, with_kept(experiment, options, jobs))
        finished = {key for row in table["rows"] for key in row["finished"]}
        table["measured"] = _measured_of(
            finished, table["measured"] if measured is None else measured
        )
        made = finished & {job.key for job in jobs} if jobs else table["measured"].get("points")
        if not made:
            return None
        write_table(options, table)
    return table


def _measured_of(finished: set[str], measured: dict[str, Any]) -> dict[str, Any]:
    """What was measured, without entries of runs that are in no row."""
    return {
        name: [entry for entry in part if entry.get("run") in {None, *finished}]
        if name in MEASURED_OF_RUNS
        else part
        for name, part in measured.items()
    }
