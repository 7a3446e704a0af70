"""The crossing table: both ways are timed at every size, and the limit is as it was afterwards."""

from __future__ import annotations

import pytest

from bench import crossing_table
from spela_kernels.linear import steps


def test_a_row_a_shape_and_the_limit_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(crossing_table, "SHAPES", ((8, 9, 4), (16, 7, 2)))
    monkeypatch.setattr(crossing_table, "_A_TURN", 1)
    usual = steps.LARGEST
    crossing_table.main(["--turns", "4"])
    assert usual == steps.LARGEST
    lines = capsys.readouterr().out.splitlines()[4:]
    assert [line.split(" | ")[0] for line in lines] == ["| 8-9-9, 4", "| 16-7-7, 2"]
    for line in lines:
        cells = line.strip("| ").split(" | ")[2:]
        assert len(cells) == 3
        assert all(
            float(number) > 0 for cell in cells for number in cell.split(" (")[0].split(" / ")
        )
