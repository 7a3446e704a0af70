"""Printing on a console of any encoding, and the exit code of a command that Ctrl-C ends."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["INTERRUPTED", "printing_anywhere"]

# What shells report of a program that Ctrl-C ended: 128 and the signal's number.
INTERRUPTED = 130


@contextmanager
def printing_anywhere() -> Iterator[None]:
    """Print characters that the console's encoding lacks as escapes such as \\u96f6.

    Names of classes and files may hold any, and a Windows console or pipe knows few: an error would end a
    command half way. So would printing to a stream that the shell has closed: it goes nowhere.
    """
    absent = [name for name in ("stdout", "stderr") if getattr(sys, name) is None]
    for name in absent:
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 closed below
    streams = [s for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)
        for name in absent:
            getattr(sys, name).close()
            setattr(sys, name, None)
