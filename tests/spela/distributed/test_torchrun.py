"""The command line under torchrun: a run, and (slow) errors said once, a killed rank, a resumed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
TRAIN = ["train", "--data", "digits", "--layers", "32,24,16", "--dropout", "0.1", "--seed", "3"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
ROOT = Path(__file__).resolve().parents[3]


def _command(launcher: list[str], *arguments: str | Path) -> list[str]:
    # torchrun looks for a module where it is called: -m spela works from anywhere with spela installed.
    return [*launcher, "-m", "spela", *map(str, arguments)]


def _torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    port = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.run(
        _command([*TORCHRUN, *port], *arguments),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        timeout=600,
    )


def _spela(*arguments: str | Path) -> None:
    command = _command([sys.executable], *arguments)
    subprocess.run(command, check=True, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.DEVNULL)


def _tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoint.safetensors")


def test_a_run_under_torchrun(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = _torchrun(*TRAIN, "--epochs", "1", "--parallel", "layers", "--out", out)
    assert result.returncode == 0, result.stderr
    assert "2 processes, layers parallel" in result.stdout
    assert result.stdout.count("epoch 1/1") == 1
    assert result.stdout.count("layer 3:") == 1
    assert (out / "report.html").exists()


@pytest.mark.slow
def test_an_error_is_said_once(tmp_path: Path) -> None:
    result = _torchrun(
        *TRAIN, "--recipe", "backprop", "--parallel", "data", "--out", tmp_path / "r"
    )
    assert result.returncode != 0
    assert result.stderr.count("spela: error: ") == 1
    assert "SPELA networks only" in result.stderr
    assert "spela/cli" not in result.stderr  # no traceback but torchrun's own
    assert not (tmp_path / "r").exists()


def _start(out: Path, *arguments: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A job in its first epochs, and its processes by rank."""
    port = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    job = subprocess.Popen(
        _command([*TORCHRUN, *port], *arguments, "--out", out),
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        assert job.poll() is None, "ended before it could be killed"
        time.sleep(0.05)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_text().split("\0")
        ranks |= {int(v[5:]): int(child) for v in variables if v.startswith("RANK=")}
    return job, [ranks[0], ranks[1]]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize("form", ["data", "layers"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_job_and_the_run_resumes(
    form: str, victim: int, tmp_path: Path
) -> None:
    arguments = [*TRAIN, "--epochs", "8", "--batch-size", "8", "--parallel", form]
    job, processes = _start(tmp_path / "cut", *arguments)
    os.kill(processes[victim], signal.SIGKILL)
    killed = time.monotonic()
    _, error = job.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert job.returncode != 0
    assert error.count("spela: error: ") == 1
    message = next(line for line in error.splitlines() if line.startswith("spela: error: "))
    assert "--resume" in message
    assert f"rank {victim} is lost" in message or "another rank failed" in message
    assert not (tmp_path / "cut" / "summary.json").exists()
    result = _torchrun(*arguments, "--out", tmp_path / "cut", "--resume")
    assert result.returncode == 0, result.stderr
    if form == "data":
        assert _torchrun(*arguments, "--out", tmp_path / "whole").returncode == 0
    else:
        _spela(*arguments[:-2], "--out", tmp_path / "whole")
    cut, whole = _tensors(tmp_path / "cut"), _tensors(tmp_path / "whole")
    assert cut.keys() == whole.keys()
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_silent_rank_counts_as_lost(tmp_path: Path) -> None:
    arguments = [*TRAIN, "--epochs", "100", "--batch-size", "8", "--parallel", "data"]
    job, processes = _start(tmp_path / "run", *arguments, "--rank-timeout", "40")
    os.kill(processes[1], signal.SIGSTOP)
    stderr = job.stderr
    assert stderr is not None
    line = next(line for line in stderr if line.startswith("spela: error: "))
    assert "rank 1 is lost: killed, cut off, or silent for 40 s" in line
    os.kill(processes[1], signal.SIGCONT)
    job.communicate(timeout=60)
    assert job.returncode != 0
