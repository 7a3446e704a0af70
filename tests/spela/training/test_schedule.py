"""Learning rates of the schedules, by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spela.cli.commands import app
from spela.experiments import make_config
from spela.training.schedule import learning_rate


def test_tmlr_lowers_its_rate_after_every_tenth_epoch() -> None:
    config = make_config("digits", "tmlr", epochs=21)
    rates = [learning_rate(config, epoch, 0, 5) for epoch in (0, 9, 10, 19, 20)]
    assert rates == pytest.approx([2.5, 2.5, 2.4, 2.4, 2.3])


def test_a_cosine_falls_over_all_steps() -> None:
    config = make_config("digits", epochs=4, lr=1.0)
    rates = [learning_rate(config, *at, 10) for at in ((0, 0), (2, 0), (3, 5))]
    assert rates == pytest.approx([1.0, 0.5, 0.5 * (1 + math.cos(math.pi * 0.875))])


def test_a_head_has_a_schedule_of_its_own_epochs() -> None:
    config = make_config(
        "digits", model="cnn", channels=(4,), layers=(10,), epochs=2, head_epochs=4, lr=1.0
    )
    assert [learning_rate(config, epoch, 0, 10) for epoch in (2, 4)] == pytest.approx([1.0, 0.5])


def test_a_drop_by_nothing_is_refused_and_a_rate_of_zero_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lowers the rate by lr_drop, which is 0"):
        make_config("digits", schedule="drop")
    assert make_config("digits", schedule="drop", lr_drop=1e-4).lr_drop == 1e-4
    call = ["train", "--data", "digits", "--layers", "4", "--recipe", "tmlr", "--device", "cpu"]
    for lr, said in (("0.05", True), ("2.5", False)):
        out = ["--out", str(tmp_path / lr), "--lr", lr, "--epochs", "12"]
        result = CliRunner().invoke(app, [*call, *out])
        assert result.exit_code == 0, result.output
        assert ("from epoch 11 on the learning rate is 0: schedule drop" in result.output) is said
