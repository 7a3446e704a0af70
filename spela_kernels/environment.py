"""The environment variables SPELA_*: their names, and the one place that reads them.

A call's own argument, or a command's option, counts before its variable, and the variable before the default.
"""

from __future__ import annotations

import difflib
import functools
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["VARIABLES", "choice_of", "folder_of", "text_of"]

VARIABLES = ("SPELA_BACKEND", "SPELA_CPU_GEMM", "SPELA_DATA_ROOT", "SPELA_CACHE_DIR")

_logger = logging.getLogger(__name__)


def text_of(name: str) -> str:
    """What a variable says; empty where it is not set.

    The first call of a process warns of variables SPELA_* that are none of `VARIABLES`: mistyped ones would
    change nothing without a word. Not an error, since other programs may have such names of their own.

    Args:
        name: One of `VARIABLES`.

    Example:
        >>> text_of("SPELA_BACKEND") == os.environ.get("SPELA_BACKEND", "")
        True
    """
    _warn_of_unknown()
    return os.environ.get(name, "")


def choice_of(name: str, choices: Sequence[str], what: str) -> str:
    """What a variable says, or `auto` where it is not set.

    Args:
        name: One of `VARIABLES`.
        choices: What it may be, beside `auto`.
        what: What it names, for the message.

    Raises:
        ValueError: If it is none of these.

    Example:
        >>> choice_of("SPELA_BACKEND", ("cpu", "reference"), "back-end") in ("auto", "cpu", "reference")
        True
    """
    value = text_of(name) or "auto"
    if value != "auto" and value not in choices:
        raise ValueError(
            f"unknown {what} {value!r} in {name}: use one of {', '.join(('auto', *choices))}"
        )
    return value


def folder_of(name: str, default: Path) -> Path:
    """The folder that a variable names, which need not be there yet; `default` where it is not set.

    Args:
        name: One of `VARIABLES`.
        default: A folder; as in the variable, ~ is the user's home, or, of a user who has none (a container
            run under a number), a folder in the system's one for temporary files.

    Raises:
        ValueError: If it is a file, or in the home of nobody.

    Example:
        >>> folder_of("SPELA_DATA_ROOT", Path("data")).name != ""
        True
    """
    named = text_of(name)
    try:
        path = Path(named or default).expanduser()
    except RuntimeError:
        if named:
            raise ValueError(
                f"{name} is {named!r}, and there is no such home: name a folder"
            ) from None
        user = os.getuid() if hasattr(os, "getuid") else "user"  # Windows' folder is the user's own
        path = Path(tempfile.gettempdir(), f"spela-{user}", *default.parts[1:])
    if named and path.exists() and not path.is_dir():
        raise ValueError(f"{name} is {named!r}, which is a file: name a folder")
    return path


@functools.cache
def _warn_of_unknown() -> None:
    for name in sorted(os.environ):
        if name.startswith("SPELA_") and name not in VARIABLES:
            close = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.75)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(VARIABLES)}"
            _logger.warning("spela: the environment variable %s is not read: %s", name, hint)
