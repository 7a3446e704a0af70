"""What an experiment measures on its trained networks beside accuracy."""

from __future__ import annotations

from typing import Any

from spela.experiments.declare import Experiment
from spela.experiments.exits import measure_exits
from spela.experiments.memory import measure_memory
from spela.experiments.plan import Job, Options

__all__ = ["MEASURED_OF_RUNS", "measure"]

MEASURED_OF_RUNS = ("points", "halves")  # lists whose entries may name their run


def measure(
    experiment: Experiment, options: Options, jobs: list[Job], before: dict[str, Any]
) -> dict[str, Any]:
    """The measured part of a table: `points` and what goes with them, or `unavailable` with the reason.

    Args:
        experiment: One with a measure.
        options: What was asked for.
        jobs: The experiment's runs; unfinished ones are left out.
        before: What was measured so far.

    Returns:
        JSON values.
    """
    if experiment.measure == "exits":
        return measure_exits(jobs, options, before)
    return measure_memory(options)
