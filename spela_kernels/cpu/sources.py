"""Which C files each compiled module is made of, and whether it was made of those that lie here.

`setup.py` runs this file by itself, before anything is installed: it imports the standard library alone.
"""

from __future__ import annotations

import functools
import logging
import zlib
from importlib import import_module
from pathlib import Path
from types import ModuleType

__all__ = ["SOURCES", "built_module", "checksum"]

# The file that is compiled comes first; paths are under `spela_kernels`.
SOURCES = {
    "spela_kernels.cpu._products": (
        "cpu/products.c",
        "cpu/forks.h",
        "cpu/passes.h",
        "cpu/products.h",
        "cpu/products_tile.h",
    ),
    "spela_kernels.linear._rows": ("linear/rows.c", "cpu/forks.h", "cpu/passes.h", "linear/rows.h"),
    "spela_kernels.linear._steps": (
        "linear/steps.c",
        "cpu/passes.h",
        "cpu/products.h",
        "linear/rows.h",
    ),
    "spela_kernels.pooling._windows": ("pooling/windows.c", "cpu/forks.h", "cpu/passes.h"),
}

_logger = logging.getLogger(__name__)


def checksum(name: str, folder: Path) -> int | None:
    """Of a module's C files, in 31 bits; None where one is missing.

    Args:
        name: One of `SOURCES`.
        folder: The package's, `spela_kernels`.

    Example:
        >>> checksum("spela_kernels.linear._rows", Path("nowhere")) is None
        True
    """
    total = 0
    try:
        for source in SOURCES[name]:
            total = zlib.crc32((folder / source).read_bytes().replace(b"\r\n", b"\n"), total)
    except OSError:
        return None
    return total & 0x7FFFFFFF


def built_module(name: str) -> ModuleType | None:
    """A compiled module; None where none was built, or where its C files have changed since.

    Args:
        name: One of `SOURCES`.

    Example:
        >>> module = built_module("spela_kernels.linear._rows")
        >>> module is None or callable(module.label_rows)
        True
    """
    try:
        module = import_module(name)
    except ImportError:  # no compiler was there at installation
        return None
    here = checksum(name, Path(__file__).parents[1])
    if here is None or getattr(module, "SOURCES", None) == here:
        return module
    _warn_once()
    return None


@functools.cache
def _warn_once() -> None:
    _logger.warning(
        "spela_kernels: the compiled passes are older than their C files and stay unused, so that steps are "
        "slower: build them again where the sources are, by pip install -e ."
    )
