"""The crossing table: both ways are timed at every size, and the limit is as it was afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from bench import crossing_table
from spela.optim import shared
from spela_kernels.linear import steps


def test_steps_by_operators_are_set_beside_steps_in_one_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(crossing_table, "_A_TURN", 1)
    calls: list[int] = []  # the limit at every step that went into one call
    prepare = shared.prepare

    def watched(*arguments: Any, **more: Any) -> Any:
        calls.append(steps.LARGEST)
        return prepare(*arguments, **more)

    monkeypatch.setattr(shared, "prepare", watched)
    crossing_table._milliseconds(9, 8, 4, True, turns=3)
    assert calls == [1 << 40] * 3
    monkeypatch.setattr(crossing_table, "SHAPES", ((8, 9, 4),))
    monkeypatch.setattr(crossing_table, "_milliseconds", lambda *_: [2.0, 1.0])
    monkeypatch.setattr(crossing_table, "_products", lambda *_: 0.5)
    crossing_table.main([])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.split(" | ")[2:] == ["0.500", *["2.000 / 1.000 (0.50)"], "2.000 / 1.000 (0.50) |"]


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
