"""A table that is made anew from the runs that are there, or of some of them, loses no finished row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spela.experiments.declare import Experiment, Row
from spela.experiments.plan import Options
from spela.experiments.reproduce import rebuild, reproduce
from spela.experiments.tables import table_path

SMALL = {"layers": (8, 8), "epochs": 2}
ROWS = (
    Row("ours", "best", settings=SMALL, rival="theirs"),
    Row("theirs", "backprop", settings=SMALL),
)
EXPERIMENT = Experiment("mlp", "A test", ("digits",), ROWS)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    """Two datasets and seeds, run; one dataset is a file whose name has a dot."""
    draw = np.random.default_rng(0)
    x, y = draw.random((60, 6), np.float32), np.arange(60) % 3
    np.savez(tmp_path / "a.b.npz", train_x=x[:30], train_y=y[:30], test_x=x[30:], test_y=y[30:])
    found = Options(tmp_path / "out", (0, 1), ("digits", str(tmp_path / "a.b.npz")))
    reproduce(EXPERIMENT, found)
    return found


@pytest.mark.parametrize("lost", [False, True])
def test_rows_that_were_not_asked_for_stay(options: Options, lost: bool) -> None:
    path = table_path(options, "mlp")
    before = rebuild(EXPERIMENT, options)
    assert before is not None
    assert [row["data"] for row in before["rows"]] == ["digits", "a.b"] * 2
    if lost:
        Path(options.data[1]).unlink()
    for seeds in ((0, 1), (1,)):
        again = rebuild(EXPERIMENT, replace(options, data=("digits",), seeds=seeds))
        assert again is not None
        assert again["rows"] == before["rows"]
    # What its runs are not finished of any more is not kept.
    for key in before["rows"][1]["runs"]:
        (options.out / "runs" / key / "summary.json").unlink()
    rebuild(EXPERIMENT, replace(options, data=("digits",)))
    assert before["rows"][1]["row"] in path.read_text()
    assert path.read_text().count('"data": "a.b"') == 1


def test_nothing_of_what_was_asked_for_leaves_the_table_as_it_is(options: Options) -> None:
    path = table_path(options, "mlp")
    before = path.read_bytes()
    assert rebuild(EXPERIMENT, replace(options, seeds=(7,))) is None
    assert rebuild(EXPERIMENT, replace(options, epochs=1)) is None
    assert path.read_bytes() == before
