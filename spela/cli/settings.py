"""What the environment variables SPELA_* say, checked before a command works, and shown by `spela info`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from spela.data import default_data_root
from spela_kernels import available_backends, select_backend
from spela_kernels.backend import named_backend
from spela_kernels.cpu.gemm import libraries_here
from spela_kernels.cpu.gemm_choice import cache_folder, pinned_library
from spela_kernels.environment import text_of

__all__ = ["check_environment", "settings_in_force"]


def check_environment() -> None:
    """Refuse a variable SPELA_* whose value means nothing here; `pick_device` refuses the rest.

    Raises:
        ValueError: Naming the variable.
    """
    named_backend()
    libraries_here()
    default_data_root()
    cache_folder()


def settings_in_force(data_root: Path | None) -> Iterator[str]:
    """Lines that say what holds and where it comes from: an option, a variable or the default.

    Args:
        data_root: What --data-root says.
    """
    for device in ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]:
        able = available_backends(device)
        obeys = named_backend() in ("auto", *able)
        chosen = select_backend(torch.device(device)) if obeys else "none, it cannot run there"
        yield f"device {device}: back-ends {', '.join(able)}; in force: {chosen} {_source('SPELA_BACKEND')}"
    products = pinned_library() or f"the fastest of {', '.join(libraries_here())}, as measured"
    yield f"products of the CPU back-end: {products} {_source('SPELA_CPU_GEMM')}"
    kept = cache_folder()
    yield f"measured choices: {kept} {_source('SPELA_CACHE_DIR')}{_absent(kept)}"
    if data_root is None:
        root, source = default_data_root(), _source("SPELA_DATA_ROOT")
    else:
        root, source = data_root, "(--data-root)"
    yield f"data root: {root} {source}{_absent(root)}"


def _absent(folder: Path) -> str:
    return "" if folder.exists() else ", not there yet"


def _source(variable: str) -> str:
    return f"({variable})" if text_of(variable) else f"(default; {variable} is not set)"
