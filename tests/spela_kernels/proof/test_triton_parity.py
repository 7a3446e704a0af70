"""Runs the interpreter tests, and those of every back-end, in a process where TRITON_INTERPRET=1 holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "interpreter"
EVERY_BACKEND = [str(HERE / name) for name in ("test_added_rows.py", "test_every_backend.py")]


def test_kernels_match_the_oracle_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("SPELA_BACKEND", None)
    # Two processes: it is the last file of a run of all tests, and takes minutes.
    environment = {k: v for k, v in environment.items() if not k.startswith("PYTEST_XDIST")}
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", str(FOLDER), *EVERY_BACKEND),
            *("-p", "no:cacheprovider", "-n", "2", "--dist", "worksteal", "--durations=5"),
        ],
        env=environment,
        cwd=FOLDER.parents[2],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
