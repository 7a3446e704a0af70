"""One writer at a time: locks that the system lets go of when their process ends, however it ends."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["LOCK_FILE", "InUseError", "locked", "only_writer"]

_LOG = logging.getLogger(__name__)
LOCK_FILE = ".lock"
# What file systems without locks answer (some network and FUSE mounts).
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


class InUseError(ValueError):
    """Another process, or another thread, is writing there."""


@contextmanager
def locked(file: Path, refusal: str, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock file. The file stays behind and means nothing: what locks is the system, on the open file.

    A thread may hold a lock several times. Where the file system has no locks, a warning is logged and
    nothing is held.

    Args:
        file: Made if missing; its folder must be there.
        refusal: The error's message.
        wait: Seconds to wait for another holder.

    Raises:
        InUseError: If another process or thread holds it.
        OSError: If the file cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder) / ".lock", "busy"):
        ...     [path.name for path in Path(folder).iterdir()]
        ['.lock']
    """
    # One object a path, which counts its holders. The library's own way out on file systems without locks
    # is a file that outlives a killed process.
    path = file.parent.resolve() / file.name
    lock = FileLock(path, timeout=wait, is_singleton=True, fallback_to_soft=False)
    held = True
    try:
        lock.acquire()
    except Timeout:
        raise InUseError(refusal) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise OSError(f"cannot write to {file.parent}: {error.strerror or error}") from error
        held = False
        _LOG.warning("%s is on a file system without locks: keep to one writer", file.parent)
    try:
        yield
    finally:
        if held:
            lock.release()


@contextmanager
def only_writer(folder: Path, refusal: str) -> Iterator[None]:
    """Hold a folder for writing; it is made if missing, and removed again if nothing is written.

    Args:
        folder: What to hold.
        refusal: The error's message.

    Raises:
        InUseError: If another process or thread holds it.
        ValueError: If it is a file.
        OSError: If it cannot be made or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give --out a folder")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder {folder}: {error.strerror}") from error
    with locked(folder / LOCK_FILE, refusal):
        try:
            yield
        finally:
            if made and [path.name for path in folder.iterdir()] == [LOCK_FILE]:
                with suppress(OSError):  # an open file cannot be removed on Windows
                    (folder / LOCK_FILE).unlink()
                    for path in made:
                        path.rmdir()
