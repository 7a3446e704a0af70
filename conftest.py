"""Tests compute on one thread: their tensors are small, and on a busy machine threads wait for each other."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version
from importlib.util import find_spec

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Measured choices of GEMM libraries stay within the test run.
if "SPELA_CACHE_DIR" not in os.environ:
    os.environ["SPELA_CACHE_DIR"] = tempfile.mkdtemp(prefix="spela-tests-")
    atexit.register(shutil.rmtree, os.environ["SPELA_CACHE_DIR"], ignore_errors=True)

# Where triton is absent (macOS, Windows, CPU wheels) its modules cannot be imported, not even for doctests.
if find_spec("triton") is None:
    collect_ignore_glob = [
        "spela_kernels/gpu/fallback.py",
        "spela_kernels/gpu/formulas.py",
        "spela_kernels/gpu/interpreting.py",
        "spela_kernels/gpu/launching.py",
        "spela_kernels/gpu/loads.py",
        "spela_kernels/gpu/updates.py",
        "spela_kernels/aot/*",
        "spela_kernels/*/kernels.py",
        "spela_kernels/*/*_kernel.py",
        "spela_kernels/*/launch.py",
        "spela_kernels/*/triton_backend.py",
        "tests/spela_kernels/interpreter/*",
    ]
elif tuple(map(int, version("triton").split(".")[:2])) < (3, 6):
    # Its plans follow what Triton's launcher does from 3.6 on.
    collect_ignore_glob = ["spela_kernels/aot/*"]
