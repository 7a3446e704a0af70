"""The paper's figures beside ours: what is compared, what is judged, and the words for it."""

from __future__ import annotations

from typing import Any

import pytest

from spela.reports.published import beside_published, verdict


def _figure(
    mean: float, sd: float | None, published: float | None = None, published_sd: float | None = None
) -> dict[str, Any]:
    if published is None:
        return {"mean": mean, "sd": sd}
    return {
        "mean": mean,
        "sd": sd,
        "published": published,
        "published_sd": published_sd,
        "is_published": True,
        "difference": mean - published,
    }


def _row(name: str, data: str, *accuracy: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "row": name,
        "data": data,
        "method": "spela",
        "rival": "",
        "epochs": 20,
        "head_epochs": 0,
        "batch_statistics": False,
        "accuracy": list(accuracy),
        **more,
    }


TABLE = {
    "rows": [
        _row("tmlr", "mnist", _figure(91.2, 0.1, 91.09, 0.12), _figure(93.0, 0.2, 94.41, 0.49)),
        _row("tmlr", "kmnist", _figure(84.0, None), _figure(94.0, None, 93.63)),
        _row("one epoch", "mnist", _figure(70.0, 0.1), _figure(88.0, 0.4, 86.53), epochs=1),
        _row("best", "mnist", _figure(98.0, 0.1)),
        {"row": "not run", "data": "mnist"},
    ]
}


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ((94.0, 0.2, 94.6, 0.4), "within"),
        ((94.0, 0.2, 94.7, 0.4), "below"),
        ((94.0, 0.2, 93.3, 0.4), "above"),
        ((94.0, 0.2, 93.7, None), "above"),
        ((94.0, None, 93.9, 5.0), "not judged"),
    ],
)
def test_a_figure_is_judged_by_both_deviations(ours: tuple[Any, ...], expected: str) -> None:
    assert verdict(_figure(*ours)) == expected


def test_a_line_a_network_and_a_column_a_dataset() -> None:
    found = beside_published(TABLE)
    assert found is not None
    assert found["columns"] == ["row", "mnist", "kmnist"]
    assert found["rows"] == [
        [
            ["tmlr"],
            [
                "published 91.09 ± 0.12 / 94.41 ± 0.49",
                "ours, 20 epochs: 91.20 ± 0.10 / 93.00 ± 0.20",
                "+0.11 / -1.41 ▼",
            ],
            ["published (layer 2) 93.63", "ours, 20 epochs: 94.00", "+0.37 ?"],
        ],
        [
            ["one epoch"],
            ["published (layer 2) 86.53", "ours, 1 epoch: 88.00 ± 0.40", "+1.47 ▲"],
            [],
        ],
    ]


def test_the_sentence_counts_and_names_the_farthest_miss() -> None:
    found = beside_published(TABLE)
    assert found is not None
    assert found["sentence"] == (
        "Of 3 published figures with seeds enough to judge, 1 is within both deviations, 1 is exceeded (▲) "
        "and 1 is missed (▼). The farthest miss of a row is -1.41 points (tmlr on mnist, layer 2). 1 of one "
        "seed is not judged (?)."
    )


def test_a_figure_beside_several_rows_counts_once_by_the_nearest() -> None:
    rows = [
        _row("few", "mnist", _figure(94.7, 0.1, 94.69)),
        _row("tmlr", "mnist", _figure(60.0, 1.0), _figure(50.0, 1.0, 94.69)),
        _row("again", "mnist", _figure(94.69, None, 94.69)),
        # The same number, of another method.
        _row("backprop", "mnist", _figure(96.0, 0.1, 94.69), method="backprop"),
    ]
    found = beside_published({"rows": rows})
    assert found is not None
    assert found["sentence"] == (
        "Of 2 published figures with seeds enough to judge, 1 is within both deviations, 1 is exceeded (▲) "
        "and 0 are missed (▼); beside several rows the nearest counts. The farthest miss of a row is -44.69 "
        "points (tmlr on mnist, layer 2)."
    )


def test_figures_of_other_inputs_stand_beside_ours_and_are_not_judged() -> None:
    elsewhere = _figure(66.0, 0.6, 69.0) | {"other_inputs": True}
    found = beside_published({"rows": [*TABLE["rows"], _row("head", "features", elsewhere)]})
    assert found is not None
    assert found["rows"][-1][-1] == ["published 69.00", "ours, 20 epochs: 66.00 ± 0.60", "-3.00 ?"]
    assert "Of 3 published figures with seeds enough" in found["sentence"]
    assert (
        "1 of one seed is not judged (?). 1 of other inputs than ours is not" in found["sentence"]
    )


def test_runs_of_other_epochs_than_the_rows_own_are_not_judged() -> None:
    found = beside_published(TABLE | {"epochs": 1})
    assert found is not None
    assert found["rows"][0][1][2] == "+0.11 ? / -1.41 ?"
    assert found["sentence"] == "Runs of --epochs 1 instead of the rows' own are not judged (?)."


def test_the_epochs_of_a_head_are_told_apart() -> None:
    row = _row("cnn", "cifar10", _figure(40.0, 0.1, 40.6), epochs=15, head_epochs=10)
    found = beside_published({"rows": [row]})
    assert found is not None
    assert found["rows"][0][1][1] == "ours, 15 epochs + 10 of the head: 40.00 ± 0.10"


def test_a_row_is_followed_by_its_rival() -> None:
    rows = [
        _row(name, "mnist", _figure(94.0, 0.1, published), rival=rival)
        for name, published, rival in (
            ("ours", 94.0, "theirs"),
            ("ours, few", 80.0, "theirs, few"),
            ("theirs, few", 81.0, ""),
            ("theirs", 95.0, "not published"),
        )
    ]
    found = beside_published({"rows": rows})
    assert found is not None
    assert [row[0] for row in found["rows"]] == [
        ["ours"],
        ["theirs"],
        ["ours, few"],
        ["theirs, few"],
    ]


def test_figures_read_with_batch_statistics_are_compared_in_that_reading() -> None:
    figure = _figure(80.0, 0.1, 82.0) | {"difference": 83.0 - 82.0}
    row = _row("cnn", "cifar10", figure, batch_statistics=True)
    row["test_accuracy_batch_statistics"] = [{"mean": 83.0, "sd": 0.3, "n": 3}]
    found = beside_published({"rows": [row]})
    assert found is not None
    assert found["rows"][0][1][1:] == ["ours, 20 epochs: 83.00 ± 0.30", "+1.00 ▲"]


def test_without_a_published_figure_there_is_nothing() -> None:
    measured = _figure(90.0, 0.1, 91.0) | {"is_published": False}
    assert beside_published({"rows": [_row("best", "mnist", measured)]}) is None
