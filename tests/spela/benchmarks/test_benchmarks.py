"""The measured benchmarks: clocks, memory meter, floors, parity before speed, the command."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from spela.benchmarks import GROUPS, Row, network, run_groups, scaling
from spela.benchmarks.clock import interleaved_medians
from spela.benchmarks.memory import MEMORY_VARIANTS, peak_bytes, step_multiply_adds
from spela.benchmarks.network import VARIANTS, NetworkCase, check_parity
from spela.cli import main

SMALL = NetworkCase((24, 40, 10), 8)


def test_medians_tell_the_slower_one_and_rounds_take_turns() -> None:
    order: list[str] = []

    def step(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    times = interleaved_medians({"a": lambda: step("a", 0), "b": lambda: step("b", 0.01)}, 0, 9)
    assert order[:4] == ["a", "a", "b", "b"]
    rounds = [tuple(order[start : start + 2]) for start in range(4, len(order), 2)]
    assert len(rounds) == 9
    assert set(rounds) == {("a", "b"), ("b", "a")}
    assert times["b"] > 0.01 > times["a"]


def test_a_wrong_result_gets_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "spela", lambda case: lambda: torch.zeros(2))
    with pytest.raises(ValueError, match="spela and autograd_spela differ in step 1"):
        check_parity(SMALL)


def test_the_meter_follows_what_is_held_at_once() -> None:
    def step() -> None:
        first = torch.empty(1000)
        second = torch.empty(500)
        del first
        third = torch.empty(600)
        del second, third

    assert peak_bytes(step) == pytest.approx(4 * 1500, rel=0.05)


def test_exponents_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scaling.fitted_exponent([1, 2, 4], [5, 20, 80]) == pytest.approx(2)
    monkeypatch.setitem(scaling.AXES, "threads", ((1, 2), lambda n: NetworkCase((8, 8), 4)))
    before = torch.get_num_threads()
    points = scaling.measure_axis("threads", 0.01)
    assert [size for size, _, _ in points] == [1, 2]
    assert torch.get_num_threads() == before


def test_the_command_writes_what_it_prints(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row("network_step", "tiny", "spela", 1.25, "ms", 1.0)
    monkeypatch.setitem(GROUPS, "network_step", lambda quick, device: [row])
    monkeypatch.setattr(
        sys,
        "argv",
        ["spela", "bench", "network_step", "--quick", "--json", str(tmp_path / "b.json")],
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "network_step: tiny" in shown
    data = json.loads((tmp_path / "b.json").read_text())
    assert data["quick"] is True
    assert data["rows"] == [vars(row)]
    assert data["machine"]["torch"] == torch.__version__


def test_unknown_groups_are_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="use network_step"):
        next(iter(run_groups(["network_step", "speed"], True)))
    assert network.NETWORK_CASES[0].name == "784-1024-10/b50"


def test_multiply_adds_are_those_of_the_products() -> None:
    depth, width, batch, classes = 3, 8, 4, 10
    case = NetworkCase((width,) * (depth + 1), batch, classes)
    counts = {name: step_multiply_adds(make(case)) for name, make in MEMORY_VARIANTS.items()}
    product = batch * width * width
    output = batch * width * classes
    # Ours: every layer forward and its weight gradient. Backprop: the error goes back as well, but not
    # into the inputs, and it has an output layer.
    assert counts["spela"] == 2 * depth * product
    assert counts["backprop"] == (3 * depth - 1) * product + 3 * output
    assert counts["optimizer_in_backward"] == counts["backprop"]
    assert counts["checkpointing"] > counts["backprop"]


def test_blocks_stand_beside_backprop_of_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spela.benchmarks.groups.NETWORK_SIZES", (("resnet", 32, 16),))
    peaks, times = {}, {}
    for row in next(iter(run_groups(["blocks"], quick=True))):
        (peaks if row.unit == "MB" else times)[row.variant] = row
    counts = ["1 block", "2 blocks", "3 blocks", "4 blocks", "layers"]
    assert list(peaks) == list(times) == [*counts, "backprop", "checkpointing", "accumulation"]
    values = [peaks[count].value for count in counts]
    assert values == sorted(values, reverse=True)  # more blocks never take more memory
    assert peaks["1 block"].ratio == pytest.approx(1.0, abs=0.1)  # backprop with another head
    assert peaks["3 blocks"].ratio < 0.6
    assert all(
        row.ratio == pytest.approx(row.value / kind["backprop"].value)
        for kind in (peaks, times)
        for row in kind.values()
    )
