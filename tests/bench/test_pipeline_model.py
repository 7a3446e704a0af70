"""The pipeline model against the closed forms of its sources, and its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.pipeline_model import Assumptions, model
from bench.schedules import Task, gpipe, most_held, one_forward_one_backward, simulate, spela

FREE = Assumptions(overhead_us=0, latency_us=0, bandwidth_gbs=1e12)
SIZES = [(1, 1), (1, 5), (2, 1), (2, 4), (4, 8), (8, 3), (16, 64)]


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_gpipe_and_1f1b_have_the_published_bubble(p: int, m: int) -> None:
    """GPipe, section 2: (p - 1) / (m + p - 1) of the time; SC 2021, section 2.2: 1F1B the same."""
    for method in ("gpipe", "1f1b"):
        row = model(method, p, replace(FREE, micro_batches=m))
        assert row.bubble == pytest.approx((p - 1) / (m + p - 1), abs=1e-9)
    for build in (gpipe, one_forward_one_backward):
        assert simulate(build(p, m), 1.0, 2.0, 0.0) == 3.0 * (m + p - 1)


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_1f1b_keeps_p_micro_batches_and_gpipe_all(p: int, m: int) -> None:
    """SC 2021, section 2.2.1: at most p in flight instead of m."""
    assert most_held(gpipe(p, m)) == m
    assert most_held(one_forward_one_backward(p, m)) == min(p, m)
    assert most_held(spela(p, m)) == 0


@pytest.mark.parametrize(("p", "steps"), SIZES)
def test_spela_only_fills_its_pipeline(p: int, steps: int) -> None:
    row = model("spela", p, replace(FREE, synchronise=steps))
    assert row.bubble == pytest.approx((p - 1) / (steps + p - 1), abs=1e-9)


def test_limits() -> None:
    long = replace(FREE, synchronise=20_000, micro_batches=20_000)
    one = {name: model(name, 1, FREE).samples_per_second for name in ("spela", "gpipe", "1f1b")}
    # A step of SPELA is two products a layer, of backprop three.
    assert one["spela"] / one["gpipe"] == pytest.approx(3 / 2)
    assert one["gpipe"] == one["1f1b"]
    for name, alone in one.items():
        assert model(name, 4, long).samples_per_second / alone == pytest.approx(4, rel=1e-3)
    # One micro-batch is no pipeline: stages work one after the other.
    for name in ("gpipe", "1f1b"):
        row = model(name, 4, replace(FREE, micro_batches=1))
        assert row.samples_per_second == pytest.approx(one[name])
    # Slow links and overheads cost everyone; more of either, more.
    for name in one:
        given = [replace(FREE, latency_us=late, overhead_us=late) for late in (0, 50, 500)]
        speeds = [model(name, 4, a).samples_per_second for a in given]
        assert speeds == sorted(speeds, reverse=True)
        assert len(set(speeds)) == 3


def test_recomputing_costs_a_forward_and_keeps_one_layer() -> None:
    plain, again = (model("gpipe", 1, replace(FREE, recompute=flag)) for flag in (False, True))
    assert plain.samples_per_second / again.samples_per_second == pytest.approx(4 / 3)
    assert plain.held_bytes == FREE.layers * again.held_bytes


def test_uneven_stages_wait_for_the_longest() -> None:
    five = model("spela", 2, replace(FREE, layers=5, synchronise=20_000)).samples_per_second
    six = model("spela", 2, replace(FREE, layers=6, synchronise=20_000)).samples_per_second
    assert five == pytest.approx(six)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="unknown method"):
        model("pipedream", 2, FREE)
    with pytest.raises(ValueError, match="1 to 16 stages"):
        model("spela", 17, FREE)
    circle = [[Task("B", 0), Task("F", 0)], [Task("F", 0), Task("B", 0)]]
    with pytest.raises(ValueError, match="wait for each other"):
        simulate(circle, 1.0, 1.0, 0.0)
