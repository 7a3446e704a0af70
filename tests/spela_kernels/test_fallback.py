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
from spela_kernels.gpu.architectures import find_architecture


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_older_than_the_table_runs_the_reference(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def launches() -> str:
        raise AssertionError("nothing can be launched")

    x: Any = SimpleNamespace(dtype=dtype, device=torch.device("cuda", 0))
    monkeypatch.setattr(fallback, "_start_refused", lambda: "")
    monkeypatch.setattr(fallback, "architecture_of", lambda device: find_architecture("sm_70"))
    for cached in (fallback._too_old, fallback.warn_of_fallback):
        cached.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert fallback.guarded(launches, lambda: "reference", x) == "reference"
    finally:
        fallback._too_old.cache_clear()
    (record,) = caplog.records
    assert "no tile rules for GPU 'sm_70'" in record.getMessage()
