"""What an experiment is: rows to train, figures to stand beside them, and how to draw them. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

__all__ = ["CIFAR10_COPY", "LAST", "Experiment", "Figure", "Range", "Row", "in_panel"]

# A layer's place in `Row.published`: layers count from 1, LAST is the last one whatever the depth.
LAST = -1

# Part of `Experiment.source` wherever CIFAR-10 is used: a user may have the original.
CIFAR10_COPY = "in docs/results, CIFAR-10 is a JPEG copy of quality 75"


class Range(NamedTuple):
    """The lowest and the highest of published accuracies in %, where no mean is published."""

    low: float
    high: float


Figure = float | tuple[float, float] | Range
"""A published accuracy in %, (mean, standard deviation), or a range."""


@dataclass(frozen=True)
class Row:
    """One line of a table: a recipe, what is changed in it, and what others reached with it.

    Attributes:
        name: What the line is called; unique in its experiment.
        recipe: A name in `RECIPES[model]`.
        model: mlp, cnn, or a network by name.
        settings: Overrides of the recipe's settings.
        data: Datasets of this row; empty: the experiment's.
        published: For a dataset, published accuracies in % by layer number (or LAST).
        measured: The same, where nobody published one: the authors' mathematics, or plain torch, as
            measured for this project. Tables mark these figures.
        other_inputs: Datasets of whose figures the inputs were others than ours, such as another backbone's
            features: they stand beside ours, and nobody says that they hold or do not.
        batch_statistics: Whether those figures were read with batch statistics in the test, as the
            authors' CNN notebooks do; the difference is then taken from ours read in the same way.
        by_data: Settings over those above where the data's name matches a shell pattern.
        rival: Name of the row of the same experiment that this one is compared with: as many epochs and
            the same hidden layers.
        panel: Which plot of the experiment the row belongs to.
        series: Line of that plot.
        x: Place on the plot's horizontal axis; None: a bar with the row's name.
    """

    name: str
    recipe: str
    model: str = "mlp"
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[str, ...] = ()
    published: Mapping[str, Mapping[int, Figure]] = field(default_factory=dict)
    measured: Mapping[str, Mapping[int, Figure]] = field(default_factory=dict)
    other_inputs: tuple[str, ...] = ()
    batch_statistics: bool = False
    by_data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rival: str = ""
    panel: str = ""
    series: str = ""
    x: float | None = None


def in_panel(panel: str, *rows: Row) -> tuple[Row, ...]:
    """The rows, all in one panel."""
    return tuple(replace(row, panel=panel) for row in rows)


@dataclass(frozen=True)
class Experiment:
    """One of the paper's experiments.

    Attributes:
        name: What `spela reproduce` calls it.
        title: Of its table.
        data: Datasets, the paper's; those not at hand are skipped with a reason.
        rows: The table's lines.
        source: Where the published figures are from and under which settings.
        panels: Label of the horizontal axis of every panel.
        measure: What is measured on the trained networks beside accuracy: "", exits or memory.
        against_memory: Panels that are also drawn as accuracy against a step's peak memory.
        main: Patterns of the rows that go into the main table, in the docs.
        headline: Row and dataset of those of them that the README shows too, in its order; of all
            experiments together 15 at most.
        quick: Settings of `--quick`, by model, over those of the rows.
    """

    name: str
    title: str
    data: tuple[str, ...]
    rows: tuple[Row, ...]
    source: str = ""
    panels: Mapping[str, str] = field(default_factory=dict)
    measure: str = ""
    against_memory: tuple[str, ...] = ()
    main: tuple[str, ...] = ()
    headline: tuple[tuple[str, str], ...] = ()
    quick: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"experiment {self.name} has two rows called {twice[0]!r}")
        lost = [row.rival for row in self.rows if row.rival and row.rival not in names]
        if lost:
            raise ValueError(f"experiment {self.name} has no row {lost[0]!r} to compare with")
