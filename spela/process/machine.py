"""What made a figure or a run: versions, the library's own sources, processor, threads, products."""

from __future__ import annotations

import functools
import hashlib
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

import spela_kernels
from spela_kernels.cpu.gemm import onednn_works
from spela_kernels.cpu.gemm_choice import pinned_library, processor_name
from spela_kernels.cpu.products import fits
from spela_kernels.linear import compiled as rows
from spela_kernels.linear import steps
from spela_kernels.pooling import compiled as maps

__all__ = ["are_passes_compiled", "describe_machine", "source_digest"]

# The package's front door, which was run before any of its rooms, and which rooms do not import.
_SPELA = sys.modules["spela"]
_SOURCES = {".py", ".c", ".h"}


def are_passes_compiled() -> bool:
    """Whether all compiled passes of the CPU back-end are in use here.

    Example:
        >>> are_passes_compiled() in (True, False)
        True
    """
    return fits() and rows.is_built() and steps.is_built() and maps.is_built()


def source_digest(folders: Sequence[Path]) -> str:
    """Of all Python and C files in some folders, their names included, in 12 hexadecimal digits.

    It tells apart what a version's number does not, and an installation without its repository has it too.

    Args:
        folders: Of packages, in an order that counts.

    Example:
        >>> source_digest([])
        'e3b0c44298fc'
    """
    found = hashlib.sha256()
    for folder in folders:
        files = [path for path in folder.rglob("*") if path.suffix in _SOURCES]
        for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in files):
            content = path.read_bytes().replace(b"\r\n", b"\n")  # a checkout may have either
            found.update(f"{name} {len(content)}\n".encode() + content)
    return found.hexdigest()[:12]


@functools.cache
def _own_digest() -> str:
    """Looked up once: files that change while the process runs are not those that it imported."""
    return source_digest([Path(package.__path__[0]) for package in (spela_kernels, _SPELA)])


def describe_machine() -> dict[str, Any]:
    """Facts to keep beside every figure and in every run, JSON-able.

    Example:
        >>> sorted(describe_machine())[:3]
        ['gemm', 'gpu', 'numpy']
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "spela": _SPELA.__version__,
        "source": _own_digest(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "gemm": pinned_library() or ("measured" if onednn_works() else "blas"),
        "passes": "compiled" if are_passes_compiled() else "not all",
    }
