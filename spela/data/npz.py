"""Reading .npz and .npy files without pickle; headers are checked against the file's size."""

from __future__ import annotations

import math
import os
import zipfile
from typing import IO

import numpy as np
from numpy.lib import format as npy

from spela.data.reading import MAX_DEFLATE_RATIO, one_line, reading

__all__ = ["npz_keys", "read_npy", "read_npz"]


def npz_keys(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of the arrays in an .npz file.

    Raises:
        ValueError: the file is missing, or no zip archive.
    """
    with reading(path, "an .npz file"), zipfile.ZipFile(path) as archive:
        return tuple(n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy"))


def read_npz(path: str | os.PathLike[str], key: str) -> np.ndarray:
    """Read one array of an .npz file.

    Args:
        path: the file.
        key: the array's name, one of `npz_keys(path)`.

    Raises:
        ValueError: an object array (it would need pickle), or a truncated, corrupt or false file.
    """
    where = f"{os.fspath(path)}: {key}"
    with reading(path, "an .npz file"), zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{key}.npy")
        most_bytes = min(member.file_size, member.compress_size * MAX_DEFLATE_RATIO)
        with archive.open(member) as stream:
            return _read_array(stream, most_bytes, where)


def read_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an .npy file; the same checks as `read_npz`.

    Raises:
        ValueError: an object array (it would need pickle), or a truncated, corrupt or false file.
    """
    with reading(path, "an .npy file"), open(path, "rb") as stream:
        return _read_array(stream, os.fstat(stream.fileno()).st_size, os.fspath(path))


def _read_array(stream: IO[bytes], most_bytes: int, where: str) -> np.ndarray:
    try:
        shape, _, dtype = _read_header(stream)
    # On a damaged header numpy raises ValueError, but also what Python's tokenizer raises.
    except Exception as error:
        raise ValueError(f"{where} is not a NumPy array: {one_line(error)}") from error
    if dtype.hasobject:
        raise ValueError(
            f"{where} is an array of Python objects, which only pickle could read and which is "
            "never loaded; save numbers, e.g. numpy.stack(items).astype('float32'), or text as .astype(str)"
        )
    if not all(0 <= extent < 2**63 for extent in shape):  # beside a 0 any extent would pass below
        raise ValueError(f"{where} is not a NumPy array: its header claims the shape {shape}")
    if dtype.itemsize == 0 and math.prod(shape) > 0:  # of which a file of any size holds any number
        raise ValueError(
            f"{where} claims shape {shape} of {dtype}, which holds nothing; save it again"
        )
    expected = math.prod(shape) * dtype.itemsize
    if expected > most_bytes - stream.tell():
        raise ValueError(
            f"{where} claims shape {shape} of {dtype} ({expected} bytes), more than the file "
            "holds; save or copy it again"
        )
    stream.seek(0)
    try:
        array: np.ndarray = npy.read_array(stream, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{where} is truncated or corrupt: {one_line(error)}") from error
    return array


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(stream)
    if version == (1, 0):
        return npy.read_array_header_1_0(stream)
    if version == (2, 0):
        return npy.read_array_header_2_0(stream)
    # Version 3 exists only for structured arrays with non-ASCII field names.
    raise ValueError(f"format version {version} is not supported")
