"""What every file reader shares: one-line errors and the bound on how far a file can unpack."""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["MAX_DEFLATE_RATIO", "one_line", "reading"]

# DEFLATE cannot expand a byte to more than 1032, so a header that claims more than
# 1032 x the bytes on disk is false and is refused before anything is allocated for it.
MAX_DEFLATE_RATIO = 1032


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks, or its type's name where it has none.

    Example:
        >>> one_line(OSError("no\\n such file"))
        'no such file'
    """
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def reading(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turn what the operating system and the decompressors raise into one ValueError with the path.

    Args:
        path: the file being read.
        kind: what it should be, with its article, for the message: "an idx file".

    Raises:
        ValueError: the file is missing, not permitted, truncated, corrupt or too large for memory.

    Example:
        >>> with reading("a.gz", "an idx file"):
        ...     raise EOFError("it ends early")
        Traceback (most recent call last):
        ...
        ValueError: cannot read a.gz as an idx file: it ends early; check or replace the file
    """
    try:
        yield
    except (
        OSError,
        EOFError,
        MemoryError,
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
        RuntimeError,  # zipfile: encrypted member; its subclass NotImplementedError: compression
    ) as error:
        reason = one_line(error)
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise ValueError(
            f"cannot read {os.fspath(path)} as {kind}: {reason}; check or replace the file"
        ) from error
