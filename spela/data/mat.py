"""Numeric arrays of MATLAB 5 files (.mat), every offset checked against the bytes that are there.

scipy.io.loadmat reads the same files and many more, but a damaged one can crash the interpreter
inside its compiled reader, and a damaged download has to end in an error message.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from spela.data.reading import reading

__all__ = ["read_mat"]

_HEADER_BYTES = 128
_VERSION_5 = b"\x00\x01IM"  # the header's last four bytes, little-endian
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_COMPLEX_FLAG = 0x08
_DTYPES: dict[int, np.dtype] = {
    1: np.dtype("<i1"),
    2: np.dtype("<u1"),
    3: np.dtype("<i2"),
    4: np.dtype("<u2"),
    5: np.dtype("<i4"),
    6: np.dtype("<u4"),
    7: np.dtype("<f4"),
    9: np.dtype("<f8"),
    12: np.dtype("<i8"),
    13: np.dtype("<u8"),
}


def read_mat(path: str | os.PathLike[str], names: Collection[str]) -> dict[str, np.ndarray]:
    """Read real numeric arrays by name.

    Args:
        path: a little-endian MATLAB 5 file ("-v6" or "-v7"), its variables compressed or not.
        names: the variables wanted; others are skipped.

    Returns:
        Name -> read-only array in MATLAB's (column-major) shape, in the dtype it is stored in,
        which may be smaller than its MATLAB class. Names that are not in the file are left out.

    Raises:
        ValueError: another kind of file, or a truncated or damaged one.

    Source: "MAT-File Format", The MathWorks, level 5: tags, small elements, array sub-elements.
    """
    found = {}
    with reading(path, "a MATLAB 5 file"):
        data = Path(path).read_bytes()
        try:
            for body in _matrices(data):
                item = _matrix(body, names)
                if item is not None:
                    found[item[0]] = item[1]
        except _Damage as error:
            raise ValueError(
                f"{os.fspath(path)} is not a sound MATLAB 5 file: {error}; download or copy it "
                "again"
            ) from error
    return found


class _Damage(Exception):
    """What is wrong with the bytes; `read_mat` adds the path."""


def _matrices(data: bytes) -> Iterator[memoryview]:
    """The bodies of the file's array elements, decompressed."""
    if data[124:_HEADER_BYTES] != _VERSION_5:
        raise _Damage("its header has no little-endian version 5 mark")
    view, position = memoryview(data), _HEADER_BYTES
    while position < len(view):
        kind, size = _tag(view, position)
        body = _slice(view, position + 8, size)
        position += 8 + size
        if kind == _COMPRESSED:
            inner = memoryview(zlib.decompress(body))
            kind, size = _tag(inner, 0)
            body = _slice(inner, 8, size)
        if kind == _MATRIX:
            yield body


def _matrix(body: memoryview, names: Collection[str]) -> tuple[str, np.ndarray] | None:
    """One array element: flags, dimensions, name, real part. None if it is not wanted."""
    flags_kind, flags, position = _element(body, 0)
    dims_kind, dims, position = _element(body, position)
    name_kind, name, position = _element(body, position)
    if (
        (flags_kind, dims_kind, name_kind) != (_UINT32, _INT32, _INT8)
        or len(flags) != 8
        or len(dims) % 4
    ):
        raise _Damage("an array does not start with flags, dimensions and name")
    text = bytes(name).decode("latin-1")
    if text not in names:
        return None
    if flags[1] & _COMPLEX_FLAG:
        raise _Damage(f"{text} holds complex numbers")
    shape = struct.unpack(f"<{len(dims) // 4}i", dims)
    kind, values, _ = _element(body, position)
    dtype = _DTYPES.get(kind)
    if dtype is None:
        raise _Damage(f"{text} is stored as type {kind}, which is not numeric")
    if min(shape, default=-1) < 0 or math.prod(shape) * dtype.itemsize != len(values):
        raise _Damage(f"{text} claims shape {shape} of {dtype} but holds {len(values)} bytes")
    return text, np.frombuffer(values, dtype).reshape(shape, order="F")


def _element(view: memoryview, position: int) -> tuple[int, memoryview, int]:
    """The element at `position`: its type, its data and where the next one starts."""
    kind, size = _tag(view, position)
    if kind >> 16:  # small element: size in the upper half of the type, data in place of the size
        if kind >> 16 > 4:
            raise _Damage(f"a small element claims {kind >> 16} bytes")
        return kind & 0xFFFF, _slice(view, position + 4, kind >> 16), position + 8
    return kind, _slice(view, position + 8, size), position + 8 + -(-size // 8) * 8


def _tag(view: memoryview, position: int) -> tuple[int, int]:
    kind, size = struct.unpack("<2I", _slice(view, position, 8))
    return kind, size


def _slice(view: memoryview, start: int, size: int) -> memoryview:
    part = view[start : start + size]
    if len(part) != size:
        raise _Damage(f"{size} bytes are expected at offset {start}, {len(part)} are left")
    return part
