"""Runs the interpreter tests in a process where TRITON_INTERPRET=1 holds from the start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent / "interpreter"


def test_kernels_match_the_oracle_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("SPELA_BACKEND", None)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", str(FOLDER), "-p", "no:cacheprovider", "--durations=5"],
        env=environment,
        cwd=FOLDER.parents[2],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
