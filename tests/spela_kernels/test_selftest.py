"""The self-test as a user calls it: without a GPU, in the interpreter, and when something is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spela_kernels import selftest
from spela_kernels.linear import reference
from spela_kernels.linear.parity import CASES
from spela_kernels.proof.parity import mismatches
from spela_kernels.selftest import Row, report

pytest.importorskip("triton")


def _selftest(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spela_kernels.selftest", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_without_a_gpu_it_says_what_to_do() -> None:
    result = _selftest(TRITON_INTERPRET="0")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "TRITON_INTERPRET=1" in result.stderr
    assert result.stdout == ""


def test_in_the_interpreter_the_kernels_pass(tmp_path: Path) -> None:
    file = tmp_path / "report.md"
    # A user's SPELA_BACKEND must not put the reference in the kernels' place.
    result = _selftest(
        "--quick", "--out", str(file), TRITON_INTERPRET="1", SPELA_BACKEND="reference"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert file.read_text() == result.stdout
    lines = result.stdout.splitlines()
    assert lines[-1] == "PASS: 12 checks"
    launches = {
        "linear softmax": "forward_kernel, finalise_kernel, update_kernel",
        "projection mse": "forward_kernel, update_kernel",
        "projection softmax": "forward_kernel, classes_kernel, gradient_kernel, update_kernel",
    }
    for op in ("linear", "projection"):
        assert f"| parity {op} strided-fp16/float16 | pass | ok |" in lines
    for name, kernels in launches.items():
        assert f"| launches {name} | pass | {kernels} |" in lines


class _Wrong:
    """The reference, with an output that is off by a little or missing altogether."""

    def __init__(self, error: float) -> None:
        self.error = error

    def __getattr__(self, name: str) -> object:
        return getattr(reference, name)

    def scores(self, *args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, scores = reference.scores(*args)  # type: ignore[arg-type]
        return y, scores if scores.dtype == torch.float64 else scores + self.error


@pytest.mark.parametrize("error", [1e-5, float("nan")])
def test_a_wrong_tensor_is_named(error: float) -> None:
    case = CASES["several-blocks"]
    assert mismatches(reference, case) == []
    (line,) = mismatches(_Wrong(error), case)  # type: ignore[arg-type]
    assert line.startswith("forward.scores: error")


def test_rows_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the meters: steps run on the CPU, `compiled` is refused, ours needs more memory."""
    compiled, sizes = object(), iter((2_000_000, 1_000_000))
    rivals = selftest._steps(CASES["ones"], "cpu") | {"compiled": compiled}

    def clock(step: Callable[[], object]) -> float:
        if step is compiled:
            raise RuntimeError("cannot compile\nfor a | reason")
        step()
        return 10.0

    monkeypatch.setattr(selftest, "_steps", lambda case, device: dict(rivals))
    monkeypatch.setattr(selftest.projection.Case, "fused_step", lambda case, device: lambda: None)
    monkeypatch.setattr(selftest, "measure_memory", lambda step: next(sizes))
    monkeypatch.setattr(selftest, "measure_us", clock)
    monkeypatch.setattr(selftest, "replayed", lambda step: 1 / 0)
    rows = selftest.gpu_rows(quick=True)
    name = "784-1024 b50 float32"
    assert rows == [
        (f"memory {name}", False, "2.00 MB, eager 1.00 MB"),
        (f"time {name} ours", None, "10.0 us"),
        (f"time {name} eager", None, "10.0 us"),
        (f"time {name} compiled", None, "RuntimeError: cannot compile\nfor a | reason"),
        (f"time {name} ours in a CUDA graph", False, "ZeroDivisionError: division by zero"),
        ("time projection authors-30x30 float32 ours", None, "10.0 us"),
        ("time projection authors-30x30 float32 reference", None, "10.0 us"),
    ]
    text = report(rows, "here")
    assert "| - | RuntimeError: cannot compile for a / reason |" in text
    assert text.splitlines()[-1] == "FAIL: 2 of 2 checks failed"


def test_a_case_without_launches_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "import_module", lambda name: reference)
    (row,) = selftest.parity_rows({"ones": CASES["ones"]}, "cpu")
    assert row == ("parity ones", False, "the reference ran in place of the kernels")


def test_one_failure_fails_the_report() -> None:
    rows = [Row("a", True, "ok"), Row("b", False, "x: error 1"), Row("speed", None, "3 us")]
    assert report(rows, "here").splitlines()[-1] == "FAIL: 1 of 2 checks failed"
    assert report([rows[0], rows[2]], "here").splitlines()[-1] == "PASS: 1 checks"
