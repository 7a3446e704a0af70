"""What the registry knows of a named dataset, and the download that leaves nothing half-written."""

from __future__ import annotations

import os
import shutil
import socket
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from spela.data.dataset import Dataset
from spela.data.photos import PhotoSet
from spela.data.reading import one_line
from spela_kernels.environment import folder_of

__all__ = ["Source", "default_data_root", "download_into", "first_folder_with", "socket_timeout"]

DOWNLOAD_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Source:
    """How one named dataset is found, read and downloaded.

    Args:
        name: the registry's name.
        find: data root -> the folder that holds all its files, or None.
        read: that folder -> the dataset.
        fetch: downloads into an empty folder, laid out like a data root; None if embedded.
        folder: where under the data root the files belong, for messages.
        files: the files' names, for messages; those that `find` looks for come last in a download.
        note: what a message says of them besides.
        photos: that folder -> the images as files, where they have many sizes; None: `read` has them as
            they are.
    """

    name: str
    find: Callable[[Path], Path | None]
    read: Callable[[Path], Dataset]
    fetch: Callable[[Path], None] | None = None
    folder: str = ""
    files: tuple[str, ...] = ()
    note: str = ""
    photos: Callable[[Path], PhotoSet] | None = None

    def placement(self, data_root: Path) -> str:
        """Which files to put where: the end of a message about missing data."""
        note = f" ({self.note})" if self.note else ""
        return f"put {', '.join(self.files)}{note} into {data_root / self.folder}"


def default_data_root() -> Path:
    """The folder for datasets: the environment's SPELA_DATA_ROOT, else ~/.cache/spela/data.

    Raises:
        ValueError: If SPELA_DATA_ROOT is a file.
    """
    return folder_of("SPELA_DATA_ROOT", Path("~/.cache/spela/data"))


def first_folder_with(files: tuple[str, ...], folders: tuple[Path, ...]) -> Path | None:
    """The first of `folders` that holds every one of `files`, or None."""
    for folder in folders:
        if all((folder / file).is_file() for file in files):
            return folder
    return None


def download_into(data_root: Path, source: Source) -> None:
    """Download a dataset: into a hidden folder first, then moved under `data_root` once complete.

    Args:
        data_root: made if missing.
        source: one with a `fetch`.

    Raises:
        ValueError: the download failed; what was under `data_root` is as it was.
    """
    if source.fetch is None:
        raise ValueError(f"dataset {source.name!r} is embedded and cannot be downloaded")
    made = [folder for folder in (data_root, *data_root.parents) if not folder.exists()]
    staging: Path | None = None
    finished = False
    try:
        data_root.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".download-", dir=data_root))
        with socket_timeout(DOWNLOAD_TIMEOUT_S):
            source.fetch(staging)
        # What `find` looks for comes last: a process that is killed here has then downloaded nothing.
        sought = {staging / source.folder / name for name in source.files}
        files = [f for f in staging.rglob("*") if f.is_file()]
        for file in sorted(files, key=lambda f: (f in sought, f)):
            target = data_root / file.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
        finished = True
    # URLError is an OSError; RuntimeError is torchvision's for a wrong checksum.
    except (OSError, RuntimeError, HTTPException, tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"dataset {source.name!r} is not under {data_root} and its download failed "
            f"({one_line(error)}): {source.placement(data_root)}, or choose another data root"
        ) from error
    finally:  # also after Ctrl-C
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if not finished:
            _remove_empty(made)


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Without one a firewall that drops packets would hang the download for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # not empty, or never made
            return
