"""The summary in the README: its rows, when all that are declared have figures, and its columns."""

from __future__ import annotations

from itertools import groupby

from spela.experiments.registry import EXPERIMENTS
from spela.reports.readme import main_table, summary_table

FEATURES = ("cifar10-efficientnet-lite0", "fashion-mnist-efficientnet-lite0")


def _all_rows() -> list[str]:
    lines = []
    for name, experiment in EXPERIMENTS.items():
        for row in experiment.rows:
            data = FEATURES if experiment.data == ("features",) else row.data or experiment.data
            suffixes = ("", ", calibrated") if experiment.measure == "exits" else ("",)
            lines += [
                f"| {name} | {row.name}{suffix} | {label} | 20 | 3 | 90.00 |  |  |  |  |"
                for suffix in suffixes
                for label in data
            ]
    return lines


def test_with_all_rows_the_summary_is_short_and_leads_with_the_paper_s_own() -> None:
    table = main_table([], "\n".join(_all_rows()))
    rows = [line.split(" | ")[:2] for line in summary_table(table).splitlines()[2:]]
    assert len(rows) <= 15
    # Every row that is declared as a headline is in the main table.
    assert len(rows) == sum(len(experiment.headline) for experiment in EXPERIMENTS.values())
    assert [(row, data.split(",")[0]) for row, data in rows[:3]] == [
        ("| mlp: paper 1000,34", "mnist"),
        ("| mlp: tmlr 1024,10, 200 epochs", "mnist"),
        ("| mlp: tmlr 1000,34, 200 epochs", "mnist"),
    ]
    experiments = [name for name, _ in groupby(row.split(":")[0] for row, _ in rows)]
    assert experiments == [
        "| mlp",
        "| fewshot",
        "| transfer",
        "| cnn",
        "| blocks",
        "| early-exit",
    ]
    for row, data in (
        ("| fewshot: fewshot, test share 0.99", "mnist"),
        ("| transfer: transfer, test share 0.99", FEATURES[0]),
        ("| cnn: cnn 64x64", "cifar10"),
    ):
        assert [row, f"{data}, 20 epochs, 3 seeds"] in rows


def test_the_summary_s_headings_are_true_of_every_row() -> None:
    for name, experiment in EXPERIMENTS.items():
        for wanted, data in experiment.headline:
            row = next(
                row for row in experiment.rows if row.name == wanted.removesuffix(", calibrated")
            )
            assert "backprop" in (row.rival or "backprop"), f"{name}: its column says backprop"
            assert data not in row.measured, f"{name}: its column says published"


def test_a_summary_s_difference_says_of_how_many_seeds_it_is() -> None:
    line = (
        "| mlp | best | mnist | 20 | 2 | 91.60 ± 0.08 / 90.66 ± 0.36 / … / 91.78 ± 0.19 | 91.98 | 94 to 95 "
        "|  | -1.17 ± 0.20, all layers -1.03 ± 0.10 (1 seed) (backprop, 15 epochs 93.08†) |"
    )
    assert summary_table(line).splitlines()[2] == (
        "| mlp: best | mnist, 20 epochs, 2 seeds | 91.60 / 90.66 / … / 91.78 ± 0.19 | 91.98 | 94 to 95 "
        "| 93.08† | -1.17 ± 0.20 (1 seed) |"
    )
