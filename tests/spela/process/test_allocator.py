"""Freed memory stays with the process: large buffers are not fetched page by page again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource
import torch
from spela import keep_freed_memory
kept = {keep} and keep_freed_memory()
def step():
    return [torch.ones(12_000_000) for _ in range(2)]
for _ in range(20):  # the heap settles
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(keep: bool) -> int:
    code = _FAULTS.format(keep=keep)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_settled_step_faults_in_no_pages() -> None:
    assert _faults(keep=False) > 1_000  # what it is for: 96 MB are 23,000 pages of 4 KB
    assert _faults(keep=True) < 500
