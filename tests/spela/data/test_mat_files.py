"""The MATLAB 5 reader against scipy's writer, and on damaged files."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from scipy.io import savemat

from spela.data.mat import read_mat


def _tag_of(array: np.ndarray) -> bytes:
    """The tag of the real part as savemat writes it for uint8 data."""
    return struct.pack("<2I", 2, array.size)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        np.array([[1, 10, 3]], np.uint8),
        np.array([[-1.5, 2.5], [1e300, 0.0]]),
        np.array([[-3], [4]], np.int16),
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.zeros((0, 3), np.float32),
    ],
    ids=["cube", "small-element", "float64", "int16", "int64", "empty"],
)
def test_values_survive(tmp_path, packed, array):
    path = tmp_path / "a.mat"
    content = {"text": "skipped", "X": array, "cell": np.array([{}, 1], object), "other": array}
    savemat(path, content, do_compression=packed)
    found = read_mat(path, ("X", "missing"))
    assert list(found) == ["X"]
    assert found["X"].dtype == array.dtype
    np.testing.assert_array_equal(found["X"], array)


IMAGES = np.arange(60, dtype=np.uint8).reshape(5, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "no little-endian version 5 mark"),
        (lambda data: b"\x89HDF\r\n\x1a\n" + data[8:124] + bytes(4), "version 5 mark"),
        (lambda data: data[:-1], "bytes are expected at offset"),
        (lambda data: data[:132], "8 bytes are expected at offset 128, 4 are left"),
        (lambda data: data + b"tail", "8 bytes are expected"),
        (lambda data: data.replace(_tag_of(IMAGES), struct.pack("<2I", 0x102, 60)), "type 258"),
        (lambda data: data.replace(_tag_of(IMAGES), struct.pack("<2I", 2, 59)), "holds 59 bytes"),
        (lambda data: data.replace(_tag_of(IMAGES), struct.pack("<2I", 2, 2**32 - 1)), "expected"),
        (
            lambda data: data.replace(struct.pack("<2i", 5, 12), struct.pack("<2i", 5, -12)),
            "claims",
        ),
        (
            lambda data: data.replace(struct.pack("<2i", 5, 12), struct.pack("<2i", 2**30, 2**30)),
            "claims shape",
        ),
    ],
    ids=[
        "empty",
        "hdf5",
        "truncated",
        "cut-tag",
        "tail",
        "unknown-type",
        "short-data",
        "huge-data",
        "negative-size",
        "huge-shape",
    ],
)
def test_damage_is_one_line_with_the_path(tmp_path, change, message):
    path = tmp_path / "a.mat"
    savemat(path, {"X": IMAGES})
    damaged = change(path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=message) as caught:
        read_mat(path, ("X",))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_complex_numbers_are_refused(tmp_path):
    savemat(tmp_path / "a.mat", {"X": np.array([[1 + 2j]])})
    with pytest.raises(ValueError, match="X holds complex numbers"):
        read_mat(tmp_path / "a.mat", ("X",))


def test_a_flipped_bit_in_compressed_data_fails_the_checksum(tmp_path):
    path = tmp_path / "a.mat"
    savemat(path, {"X": IMAGES}, do_compression=True)
    data = bytearray(path.read_bytes())
    data[-20] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"cannot read .*a\.mat as a MATLAB 5 file"):
        read_mat(path, ("X",))
