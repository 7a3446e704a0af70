"""Threads: what is set before torch is imported, and a container's quota."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spela.process import limit_threads, threads


def _python(code: str, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**kept, **environment},
    )
    return done.stdout.strip()


CALM = (
    "import os, sys; from spela.process import calm_threads; "
    "print('torch' in sys.modules, calm_threads(), os.environ.get('GOMP_SPINCOUNT'))"
)


def test_waiting_threads_sleep_soon_where_torch_is_not_there_yet() -> None:
    assert _python(CALM) == "False True 2000"
    assert _python(f"import torch; {CALM}") == "True False 2000"


def test_what_the_user_chose_stays() -> None:
    assert _python(CALM, GOMP_SPINCOUNT="7") == "False True 7"
    assert _python(CALM, OMP_WAIT_POLICY="active") == "False True None"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container(
    files: dict[str, str], expected: float | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads._quota(tmp_path) == expected


def test_threads_are_limited_where_nobody_chose_them(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.setattr(threads, "_quota", lambda: 2.2)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert limit_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
        assert limit_threads() == 2
        monkeypatch.setattr(threads, "_quota", lambda: 16.0)
        assert limit_threads() == 2
    finally:
        torch.set_num_threads(before)
