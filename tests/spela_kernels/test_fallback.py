"""Where Triton cannot start, the reference computes, and one warning says why."""

from __future__ import annotations

import logging
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from spela_kernels.gpu import fallback


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Failed to find C compiler.\nPlease specify"), "C compiler. Please specify"),
        (subprocess.CalledProcessError(1, ["gcc", "driver.c"]), "CalledProcessError: Command"),
    ],
)
def test_a_machine_where_triton_cannot_start_runs_the_reference(
    error: Exception,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Driver:
        @property
        def active(self) -> object:
            raise error

    def launches() -> str:
        raise AssertionError("nothing can be launched")

    x: Any = SimpleNamespace(dtype=torch.float32, device=torch.device("cuda", 0))
    monkeypatch.setattr(fallback, "driver", Driver())
    for cached in (fallback._start_refused, fallback.warn_of_fallback):
        cached.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert [fallback.guarded(launches, lambda: "reference", x) for _ in range(2)] == [
                "reference"
            ] * 2
    finally:
        fallback._start_refused.cache_clear()
    (record,) = caplog.records
    assert said in record.getMessage()
