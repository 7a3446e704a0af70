"""Printing on a console of any encoding or into any pipe, and the exit code that Ctrl-C gives a command."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["INTERRUPTED", "printing_anywhere"]

# What shells report of a program that Ctrl-C ended: 128 and the signal's number.
INTERRUPTED = 130


class _Pipe(io.FileIO):
    """A pipe whose reader may leave, as `head` does: the rest goes nowhere, and the command goes on."""

    def write(self, data: Any) -> int:
        """As FileIO."""
        with suppress(BrokenPipeError):
            return super().write(data)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return super().write(data)


@contextmanager
def printing_anywhere() -> Iterator[None]:
    """Print characters that the console's encoding lacks as escapes such as \\u96f6.

    Names of classes and files may hold any, and a Windows console or pipe knows few: an error would end a
    command half way. So would printing to a stream that the shell has closed, or to a pipe that nobody reads
    any more: it goes nowhere.
    """
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    made = []
    for name, stream in before.items():
        if stream is None:
            made.append(open(os.devnull, "w"))  # noqa: SIM115 closed below
        elif isinstance(stream, io.TextIOWrapper) and _is_pipe(stream):
            stream.flush()
            pipe = io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False))
            made.append(
                io.TextIOWrapper(pipe, stream.encoding, line_buffering=stream.line_buffering)
            )
        else:
            continue
        setattr(sys, name, made[-1])
    streams = [s for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)]
    errors = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, kept in zip(streams, errors, strict=True):
            stream.reconfigure(errors=kept)
        for stream in made:
            stream.close()
        for name, stream in before.items():
            setattr(sys, name, stream)


def _is_pipe(stream: io.TextIOWrapper) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # closed, or no file of the system's
        return False
