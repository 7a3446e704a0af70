"""Writes that are whole or absent."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["Content", "remove_leftovers", "write_all_atomically", "write_atomically"]

# A text, bytes, or what fills the file whose name it is given.
Content = str | bytes | Callable[[str], object]


def write_atomically(path: Path, content: Content) -> None:
    """Write a temporary file beside `path`, then rename it into place.

    Its mode is that of the file it replaces, or of the umask, whatever a function made of it. A link stays
    and what it points to is replaced; what is no file, as a pipe or /dev/stdout, is written to as it is.

    Args:
        path: The file to create or replace.
        content: A text (UTF-8), bytes, or a function that writes the file whose name it is called with.

    Raises:
        OSError: Naming `path`, if the disk is full or the folder is not there or not writable; `path` is then
            as it was before.
    """
    write_all_atomically({path: content})


def write_all_atomically(files: Mapping[Path, Content]) -> None:
    """Fill a temporary file beside each of several, and rename them into place once all are on the disk.

    Args:
        files: Content of each file, as `write_atomically` takes it.

    Raises:
        OSError: Naming the file, as `write_atomically`; if one could not be filled, all are as before.
    """
    filled: dict[Path, tuple[Path, Path]] = {}  # temporary file, and what it replaces
    path = Path()
    try:
        for path, content in files.items():
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if path.exists() and not path.is_file():
                _pour(path, content)
                continue
            target = Path(os.path.realpath(path))  # a loop of links is itself
            # Process ids repeat, on other machines and in containers that share the folder.
            own = f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
            temporary = target.with_name(own)
            filled[path] = temporary, target
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
            _fill(temporary, content)
            os.chmod(temporary, mode)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        for path, (temporary, target) in filled.items():  # noqa: B007, the one to name below
            os.replace(temporary, target)
    except BaseException as error:
        for temporary, _ in filled.values():
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # the temporary file's name would tell a user nothing
            raise OSError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove the temporary files of writers that were killed; a writer at work would lose its own.

    Args:
        folder: Where they wrote, which need not be there.
        name: Of the file they wrote, or a pattern.

    Raises:
        OSError: If one cannot be removed.
    """
    for left in folder.glob(f".{name}.[0-9]*-????????.tmp*"):
        if left.is_dir():  # which `spela.files.tensors` makes beside its file
            shutil.rmtree(left)
        else:
            left.unlink()


def _fill(path: Path, content: Content) -> None:
    if isinstance(content, str):
        content = content.encode()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(str(path))


def _pour(path: Path, content: Content) -> None:
    """Write into a pipe or a device, which a function might replace: what it makes is copied there."""
    if isinstance(content, str | bytes):
        _fill(path, content)
        return
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "content"
        content(str(whole))
        with open(whole, "rb") as source, open(path, "wb") as sink:
            shutil.copyfileobj(source, sink)
