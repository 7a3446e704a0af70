"""Fits of small data that are compared learn as long as asked; busy processes are there, and then gone."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch

from spela.benchmarks import run_groups
from spela.benchmarks.busy import BUSY_VARIANTS, busy_processes
from spela.benchmarks.small import SMALL_DATA, SMALL_FITS, small_data
from spela.estimator import SpelaClassifier


@pytest.mark.parametrize("name", SMALL_FITS)
def test_fits_learn_for_the_epochs_asked(name: str) -> None:
    x, y = small_data("wine")
    model = SMALL_FITS[name](x, y, 60)  # more than its loss falls for
    if isinstance(model, torch.nn.Module):
        rows = torch.as_tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
        labels = model(rows).argmax(dim=1).numpy()
    else:
        assert model.n_iter_ == 60
        given = x if isinstance(model, SpelaClassifier) else (x - x.mean(0)) / x.std(0)
        labels = model.predict(given)
    assert np.mean(labels == y) > 0.95


def test_busy_processes_compute_and_end() -> None:
    with busy_processes(2) as pids:
        assert len(set(pids)) == 2
        used = [_seconds(pid) for pid in pids]
        deadline = time.monotonic() + 60
        while not all(_seconds(pid) > before for pid, before in zip(pids, used, strict=True)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def _seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return float(file.read().rpartition(")")[2].split()[11])


def test_the_groups_measure_all_variants() -> None:
    small, busy = run_groups(["small", "busy"], quick=True)
    assert {row.variant for row in small} == set(SMALL_FITS)
    assert {row.case for row in small} == {f"{data}, 5 epochs" for data in SMALL_DATA}
    assert [row.case.partition(", ")[2] for row in busy][::4] == [
        "beside 0 busy processes",
        "beside 2 busy processes",
    ] * 2
    assert {row.variant for row in busy} == {*BUSY_VARIANTS, "spela_1_thread"}
    assert all(row.value > 0 and row.unit == "ms" for row in (*small, *busy))
