"""The paper's experiments as they are declared: what their rows share, and what stands beside them."""

from __future__ import annotations

from pathlib import Path

from spela.experiments.declare import LAST, Range, Row
from spela.experiments.plan import Options, plan
from spela.experiments.registry import EXPERIMENTS


def test_on_a_dataset_all_ablations_learn_for_as_many_epochs() -> None:
    epochs: dict[str, set[int]] = {}
    for job in plan(EXPERIMENTS["ablation"], Options(Path("/nonexistent"), (0,))):
        epochs.setdefault(job.config.data, set()).add(job.config.epochs)
    # On MNIST as many as the authors' notebooks.
    assert epochs == {"fashion-mnist": {20}, "mnist": {200}, "kmnist": {20}}


def _row(experiment: str, name: str) -> Row:
    return next(row for row in EXPERIMENTS[experiment].rows if row.name == name)


def test_a_figure_that_is_published_as_a_range_is_declared_as_one() -> None:
    assert _row("mlp", "paper 1024,10").published == {"mnist": {LAST: Range(94.06, 95.58)}}
