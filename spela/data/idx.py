"""The idx format of the MNIST family: a reader that checks each header against the file's size."""

from __future__ import annotations

import gzip
import math
import os
import struct
from pathlib import Path
from typing import IO

import numpy as np
from torch import Tensor

from spela.data.arrays import as_labels, as_samples
from spela.data.reading import MAX_DEFLATE_RATIO, reading

__all__ = ["find_idx_files", "looks_like_idx", "read_idx", "read_idx_files"]

_GZIP_MAGIC = b"\x1f\x8b"
_DTYPES: dict[int, np.dtype] = {
    0x08: np.dtype("u1"),
    0x09: np.dtype("i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read one idx file, plain or gzip-compressed (told apart by content, not by name).

    Args:
        path: the file.

    Returns:
        The array in the file's shape, in native byte order, writable.

    Raises:
        ValueError: no idx magic, unknown type code, size that differs from the header's, or a
            truncated or corrupt file.

    Source: the format note on the MNIST page: 0 0 type ndim, ndim big-endian uint32 sizes, data.
    """
    with reading(path, "an idx file"), open(path, "rb") as raw:
        packed = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        size = os.fstat(raw.fileno()).st_size
        if packed:
            with gzip.GzipFile(fileobj=raw) as stream:
                return _parse(stream, size * MAX_DEFLATE_RATIO, path)
        return _parse(raw, size, path)


def _parse(
    stream: IO[bytes] | gzip.GzipFile, most_bytes: int, path: str | os.PathLike[str]
) -> np.ndarray:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES or magic[3] == 0:
        raise ValueError(
            f"{os.fspath(path)} is not an idx file: expected the bytes 0, 0, type code, number of "
            f"axes, but it starts with {magic!r}; check or replace the file"
        )
    dtype, axes = _DTYPES[magic[2]], magic[3]
    sizes = stream.read(4 * axes)
    if len(sizes) < 4 * axes:
        raise ValueError(f"{os.fspath(path)} ends inside its idx header; download or copy it again")
    shape = struct.unpack(f">{axes}I", sizes)
    expected = math.prod(shape) * dtype.itemsize
    # Beside an axis of 0 the others may claim anything, and NumPy refuses what passes 2^63.
    overflows = math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 2**63
    if overflows or expected > most_bytes - 4 - 4 * axes:
        raise ValueError(
            f"{os.fspath(path)} claims shape {shape} ({expected} bytes), more than a file of its "
            "size can hold; download or copy it again"
        )
    data = stream.read(expected + 1)  # one more byte than wanted shows whether the file goes on
    if len(data) != expected:
        found = f"{len(data)}" if len(data) < expected else "more"
        raise ValueError(
            f"{os.fspath(path)} should hold {expected} bytes for shape {shape} but holds {found}; "
            "download or copy it again"
        )
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def looks_like_idx(path: str | os.PathLike[str]) -> bool:
    """Whether a file's first bytes (inside gzip, if packed) are those of an idx file."""
    with reading(path, "an idx file"), open(path, "rb") as raw:
        head = raw.read(4)
        if head[:2] == _GZIP_MAGIC:
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) as stream:
                head = stream.read(4)
    return len(head) == 4 and head[:2] == b"\0\0" and head[2] in _DTYPES


def find_idx_files(folder: Path) -> tuple[Path, Path, Path, Path] | None:
    """The four idx files of a folder: training images and labels, test images and labels.

    Args:
        folder: where to look (not below it), for names like `train-images-idx3-ubyte` and
            `t10k-labels-idx1-ubyte`, with or without .gz; the plain file where both are there.

    Returns:
        The four files, or None if one is missing.
    """
    found = []
    for part in ("train", "t10k"):
        for content in ("images", "labels"):
            # "train-images.idx3-ubyte" is how some archives of the same files spell the name.
            files = [f for f in folder.glob(f"{part}-{content}[-.]idx*") if f.is_file()]
            if not files:
                return None
            found.append(min(files, key=lambda file: (file.suffix == ".gz", file.name)))
    train_x, train_y, test_x, test_y = found
    return train_x, train_y, test_x, test_y


def read_idx_files(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Read a folder's four idx files: train_x, train_y, test_x, test_y as `Dataset` keeps them.

    Raises:
        ValueError: a file is missing, unreadable, or not what its name says.
    """
    files = find_idx_files(folder)
    if files is None:
        raise ValueError(
            f"{folder} does not hold four idx files; expected train-images-idx3-ubyte, "
            "train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte (or .gz); a folder of "
            "pictures becomes an .npz file first: docs/how-to/own-data.md"
        )
    train_x, train_y, test_x, test_y = ((read_idx(file), str(file)) for file in files)
    return (
        as_samples(*train_x),
        as_labels(*train_y),
        as_samples(*test_x),
        as_labels(*test_y),
    )
