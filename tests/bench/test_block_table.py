"""Rows of the table of blocks: what is written is what is trained."""

from __future__ import annotations

import pytest

from bench.block_table import ROWS, main, settings_of
from spela.experiments import make_config


def test_a_row_is_read_as_settings() -> None:
    assert settings_of("recipe=mono blocks=3 lr=1e-3 objective=log") == {
        "recipe": "mono",
        "blocks": "3",
        "lr": 1e-3,
        "objective": "log",
    }
    with pytest.raises(ValueError, match="'lr'"):
        settings_of("blocks=3 lr")


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_a_configuration(row: str) -> None:
    settings = settings_of(row)
    recipe = settings.pop("recipe", "best")
    config = make_config("cifar10", recipe, model="vgg", **settings)
    assert {name: getattr(config, name) for name in settings} == settings


def test_a_line_is_printed_for_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    command = "--data digits --model resnet --width 4 --epochs 1 --samples 128 --held-out 100"
    main([*command.split(), "blocks=2", "recipe=backprop"])
    lines = capsys.readouterr().out.splitlines()[-2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells] == ["blocks=2", "recipe=backprop"]
    assert [len(row[3].split()) for row in cells] == [2, 1]
    assert all(0 <= float(row[1]) <= 100 and float(row[4]) > 0 for row in cells)
    assert cells[1][1] == cells[1][2] == cells[1][3]  # one output is all there is
