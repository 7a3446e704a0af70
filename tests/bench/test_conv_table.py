"""The convolution table: every variant it starts gives a time, a peak and the same loss."""

from __future__ import annotations

import pytest

from bench.conv_table import VARIANTS, measure


def test_every_variant_gives_time_memory_and_the_same_loss(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = {}
    for variant in VARIANTS:
        measure(variant, "64x1x28x28", 1)
        rows[variant] = [float(word) for word in capsys.readouterr().out.split()]
    assert "spela" in rows
    assert len(rows) > 1
    for seconds, memory, loss in rows.values():
        assert seconds > 0
        assert memory >= rows["spela"][1] > 0
        assert loss == pytest.approx(rows["spela"][2], rel=1e-3)
