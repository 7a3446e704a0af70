"""Which of BLAS (MKL), oneDNN and our own passes makes a CPU product: measured once a shape, then kept.

The three round differently, so a choice that changed between runs would make them differ in the last bits. It
is therefore kept for every later process: one small file a machine, kind of product and shape class in the
user's cache folder. SPELA_CPU_GEMM=blas, onednn or compiled pins it; nothing is measured or kept then.
"""

from __future__ import annotations

import functools
import logging
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from spela_kernels.environment import choice_of, folder_of

__all__ = ["LIBRARIES", "cache_folder", "choose_library", "pinned_library", "processor_name"]

LIBRARIES = ("blas", "onednn", "compiled")
# Sizes are rounded up to powers of two; beyond this one, which library is faster no longer changes.
_LARGEST, _SMALLEST = 1024, 16
# Least and most rounds of a measurement, and the seconds after which only the least are run.
_LEAST, _MOST, _SECONDS = 7, 50, 0.04
# Measured alone, a library has the caches to itself and seems faster than in a step; our passes are taken
# up to this factor above the fastest time.
_ALLOWANCE = 1.05

_logger = logging.getLogger(__name__)
_Run = Callable[[str, Tensor, Tensor, Tensor], None]


@functools.cache
def pinned_library() -> str | None:
    """The library that SPELA_CPU_GEMM names, or None for a choice by measurement; looked up once.

    Raises:
        ValueError: If it is neither auto nor one of `LIBRARIES`.
    """
    name = choice_of("SPELA_CPU_GEMM", LIBRARIES, "library")
    return None if name == "auto" else name


def cache_folder() -> Path:
    """Where choices are kept: SPELA_CACHE_DIR, else the user's cache folder.

    Raises:
        ValueError: If SPELA_CACHE_DIR is a file.
    """
    return folder_of(
        "SPELA_CACHE_DIR", Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "spela"
    )


@functools.cache
def processor_name() -> str:
    """The processor, and which of its vector instructions torch uses."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    fields = (
        re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
        for name in ("model name", "cpu family", "model", "stepping")
    )
    parts = [match.group(1) for match in fields if match] or [platform.machine()]
    return " ".join([*parts, torch.backends.cpu.get_cpu_capability()])


def _shape_class(size: int) -> int:
    return min(_LARGEST, max(_SMALLEST, 1 << (size - 1).bit_length()))


def choose_library(
    kind: str,
    batch: int,
    inputs: int,
    outputs: int,
    run: _Run,
    names: tuple[str, ...],
) -> str:
    """Who makes a kind of product for a shape.

    Args:
        kind: linear, product, update, momentum or adam.
        batch, inputs, outputs: B, I, O.
        run: (name, x (B, I), weight (O, I), dz (B, O)) makes one product of this kind.
        names: Who can, of `LIBRARIES`.

    Returns:
        One of `names`: the pinned library if it can, else the first of them; where none is pinned, the one
        that measured fastest, kept for later processes.

    Raises:
        ValueError: If SPELA_CPU_GEMM names no library.
    """
    pinned = pinned_library()
    if pinned is not None:
        return pinned if pinned in names else names[0]
    return _kept(kind, batch, inputs, outputs, torch.get_num_threads(), run, names)


@functools.lru_cache(maxsize=4096)
def _kept(
    kind: str,
    batch: int,
    inputs: int,
    outputs: int,
    threads: int,
    run: _Run,
    names: tuple[str, ...],
) -> str:
    sizes = _shape_class(batch), _shape_class(inputs), _shape_class(outputs)
    able = "-".join(names)  # without a compiler, or without oneDNN, another choice is kept
    name = f"{kind}-{'x'.join(map(str, sizes))}-{threads}-threads-{able}"
    # What a measurement holds for.
    machine = re.sub(r"[^A-Za-z0-9.+]+", "-", f"{processor_name()} torch {torch.__version__}")
    path = cache_folder() / "cpu-gemm" / machine / name
    return _read(path, names) or _keep(path, _fastest(sizes, run, names), names)


def _read(path: Path, names: tuple[str, ...]) -> str | None:
    try:
        name = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if name in names else None


def _keep(path: Path, name: str, names: tuple[str, ...]) -> str:
    """Write the choice unless another process was first; its choice counts then."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(name + "\n", encoding="ascii")
        try:
            os.link(draft, path)  # unlike a rename, fails where the file is there
        except FileExistsError:
            if _read(path, names) is None:  # damaged: replaced whole
                draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        _logger.warning(
            "spela_kernels: the measured choice of a GEMM library is not kept (%s): set "
            "SPELA_CACHE_DIR to a folder that can be written, or pin SPELA_CPU_GEMM for equal bits",
            error,
        )
        return name
    return _read(path, names) or name


def _fastest(sizes: tuple[int, int, int], run: _Run, names: tuple[str, ...]) -> str:
    batch, inputs, outputs = sizes
    shapes = ((batch, inputs), (outputs, inputs), (batch, outputs))
    # Filled without a random generator: a measurement must not move anybody's seed.
    x, weight, dz = (torch.full(shape, 0.01, dtype=torch.float32, device="cpu") for shape in shapes)
    best = dict.fromkeys(names, float("inf"))
    rounds, end = 0, time.perf_counter() + _SECONDS
    while rounds < _LEAST or (rounds < _MOST and time.perf_counter() < end):
        rounds += 1
        for name in names:
            start = time.perf_counter()
            run(name, x, weight, dz)
            best[name] = min(best[name], time.perf_counter() - start)
    fastest = min(names, key=best.__getitem__)
    own = best.get("compiled", float("inf"))
    return "compiled" if own <= _ALLOWANCE * best[fastest] else fastest
