"""The experiments by name."""

from __future__ import annotations

from spela.experiments import suite
from spela.experiments.declare import Experiment
from spela.files.text import did_you_mean

__all__ = ["EXPERIMENTS", "find_experiments"]

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        suite.MLP,
        suite.FEWSHOT,
        suite.TRANSFER,
        suite.CNN,
        suite.CNN_HEAD,
        suite.BLOCKS,
        suite.ABLATION,
        suite.MEMORY,
        suite.NOISE,
        suite.EARLY_EXIT,
    )
}


def find_experiments(name: str) -> list[Experiment]:
    """The experiment of a name, or all of them.

    Args:
        name: One of `EXPERIMENTS`, or "all".

    Raises:
        ValueError: If there is no such experiment.

    Example:
        >>> [experiment.name for experiment in find_experiments("ablation")]
        ['ablation']
    """
    if name == "all":
        return list(EXPERIMENTS.values())
    if name not in EXPERIMENTS:
        hint = did_you_mean(name, [*EXPERIMENTS, "all"])
        raise ValueError(
            f"unknown experiment {name!r}: {hint}known are {', '.join(EXPERIMENTS)}, and all"
        )
    return [EXPERIMENTS[name]]
