"""What a figure was measured on: processor, threads, versions, commit."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy
import torch

from spela_kernels.cpu.gemm import onednn_works
from spela_kernels.cpu.gemm_choice import machine_name, pinned_library
from spela_kernels.cpu.products import fits
from spela_kernels.linear import compiled as rows
from spela_kernels.linear import steps
from spela_kernels.pooling import compiled as maps

__all__ = ["are_passes_compiled", "describe_machine"]


def _commit() -> str:
    root = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True
        )
    except OSError:
        return "unknown"
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def are_passes_compiled() -> bool:
    """Whether all compiled passes of the CPU back-end are in use here.

    Example:
        >>> are_passes_compiled() in (True, False)
        True
    """
    return fits() and rows.is_built() and steps.is_built() and maps.is_built()


def describe_machine() -> dict[str, Any]:
    """Facts to keep beside every figure, JSON-able.

    Example:
        >>> sorted(describe_machine())[:3]
        ['commit', 'gemm', 'gpu']
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": machine_name(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "gemm": pinned_library() or ("measured" if onednn_works() else "blas"),
        "passes": "compiled" if are_passes_compiled() else "not all",
        "commit": _commit(),
    }
