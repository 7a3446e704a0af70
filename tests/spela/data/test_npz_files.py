"""The .npz/.npy reader: exact values, no pickle, no trust in headers."""

from __future__ import annotations

import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from spela.data import load_dataset, read_inputs
from spela.data.npz import npz_keys, read_npy, read_npz


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def _with_shape(shape: str) -> bytes:
    """An .npy of float32 whose header claims `shape` over 40 bytes of data."""
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + ", }"
    header = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(40)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.uint8).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(4, dtype=">f4"),
        np.array(["cat", "dog"]),
        np.zeros((0, 3), np.float32),
        np.zeros(5_000_000, np.uint8),
    ],
    ids=["uint8", "fortran", "big-endian", "text", "empty", "1000-fold-compressed"],
)
def test_values_survive(tmp_path, save, array):
    path = tmp_path / "a.npz"
    save(path, a=array, other=np.ones(3))
    assert npz_keys(path) == ("a", "other")
    np.testing.assert_array_equal(read_npz(path, "a"), array)
    (tmp_path / "a.npy").write_bytes(_npy(array))
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), array)


class _Bomb:
    """Fails the test if it is ever unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("an object array was unpickled",))


def test_object_arrays_are_refused_and_never_unpickled(tmp_path):
    bombs = np.array([_Bomb(), _Bomb()], dtype=object)
    np.savez(tmp_path / "bomb.npz", x=bombs)
    with pytest.raises(ValueError, match=r"bomb\.npz: x is an array of Python objects"):
        read_npz(tmp_path / "bomb.npz", "x")
    (tmp_path / "bomb.npy").write_bytes(_npy(bombs))
    with pytest.raises(ValueError, match="Python objects"):
        read_npy(tmp_path / "bomb.npy")
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ValueError, match="is not a NumPy array"):
        read_npy(tmp_path / "raw.npy")
    with pytest.raises(ValueError, match="not a zip file"):
        npz_keys(tmp_path / "raw.npy")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a NumPy array"),
        (b"garbage" * 10, "is not a NumPy array"),
        (_npy(np.arange(100.0))[:-1], "more than the file holds"),
        (_with_shape("(11,)"), "more than the file holds"),
        (_with_shape("(2147483648,)"), "more than the file holds"),
        (_with_shape("(1 << 90,)"), "is not a NumPy array"),
        (_with_shape("(-5,)"), "truncated or corrupt|not a NumPy array"),
        (b"\x93NUMPY\x09\x00" + bytes(60), r"version \(9, 0\)"),
    ],
    ids=["empty", "garbage", "truncated", "one-too-many", "2^31", "code", "negative", "version"],
)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_damage_is_one_line_and_allocates_nothing(tmp_path, data, message, kind):
    path = tmp_path / f"broken.{kind}"
    if kind == "npy":
        path.write_bytes(data)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            read_npy(path) if kind == "npy" else read_npz(path, "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert peak < 2**20


def test_a_flipped_bit_fails_the_checksum(tmp_path):
    path = tmp_path / "flipped.npz"
    np.savez(path, x=np.arange(1000, dtype=np.float32))
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="CRC"):
        read_npz(path, "x")


def test_a_truncated_archive_and_a_missing_one(tmp_path):
    path = tmp_path / "cut.npz"
    np.savez(path, x=np.arange(1000))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"cannot read .*cut\.npz as an \.npz file"):
        npz_keys(path)
    with pytest.raises(ValueError, match="No such file"):
        npz_keys(tmp_path / "none.npz")


def test_items_of_no_size_are_refused(tmp_path):
    header = "{'descr': '<U0', 'fortran_order': False, 'shape': (10000000,), }".ljust(117) + "\n"
    raw = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    (tmp_path / "a.npy").write_bytes(raw)
    with pytest.raises(ValueError, match="which holds nothing"):
        read_npy(tmp_path / "a.npy")


def test_a_corrupt_lzma_member_is_named(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("x.npy", _npy(np.arange(1000)))
    raw = bytearray(path.read_bytes())
    raw[60:200] = b"\xff" * 140
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"a\.npz"):
        read_npz(path, "x")


def test_names_out_of_a_file_are_one_line_without_escape_codes(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **{"k\n\x1b[2J": np.zeros(3), "other": np.zeros(3)})
    for read in (load_dataset, lambda file: read_inputs(file, (3,))):
        with pytest.raises(ValueError, match=r"it holds k\?\?\[2J, other$"):
            read(path)
    names = np.array([f"{name}\n\x1b[31m" for name in "abcde"])
    np.savez(path, x=np.eye(5, dtype=np.float32), y=np.arange(5), class_names=names)
    with pytest.raises(ValueError, match=r"class .\?\?\[31m has one sample"):
        load_dataset(path)
