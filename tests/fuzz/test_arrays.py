"""Damaged .npz, .npy, idx and .mat files and images: arrays, or one line of error; memory stays bounded."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz_damage import INTERESTING, damaged_bytes
from fuzz_limits import bounded_memory, check_error, fuzz
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from spela.data import load_dataset, read_inputs
from spela.data.idx import read_idx
from spela.data.mat import read_mat
from spela.data.npz import npz_keys, read_npy, read_npz


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arrays")


def _npz(packed: bool = False) -> bytes:
    stream = io.BytesIO()
    rng = np.random.default_rng(0)
    arrays = {
        "train_x": rng.integers(0, 256, (6, 4, 4), dtype=np.uint8),
        "train_y": np.array([0, 1, 0, 1, 0, 1]),
        "test_x": rng.integers(0, 256, (2, 4, 4), dtype=np.uint8),
        "test_y": np.array([0, 1]),
        "class_names": np.array(["cat", "dog"]),
    }
    (np.savez_compressed if packed else np.savez)(stream, **arrays)
    return stream.getvalue()


def _npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.arange(32, dtype=np.float32).reshape(2, 16))
    return stream.getvalue()


def _idx() -> bytes:
    return struct.pack(">BBBB3I", 0, 0, 8, 3, 2, 4, 4) + bytes(range(32))


def _mat(packed: bool = False) -> bytes:
    from scipy.io import savemat

    stream = io.BytesIO()
    savemat(
        stream,
        {"X": np.arange(32, dtype=np.uint8).reshape(2, 4, 4), "y": np.array([1, 2])},
        do_compression=packed,
    )
    return stream.getvalue()


def _image(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(stream, kind)
    return stream.getvalue()


GOOD = {
    "a.npz": _npz(),
    "packed.npz": _npz(packed=True),
    "a.npy": _npy(),
    "a-idx3-ubyte": _idx(),
    "a-idx3-ubyte.gz": gzip.compress(_idx(), mtime=0),
    "a.mat": _mat(),
    "packed.mat": _mat(packed=True),
    "a.png": _image("PNG"),
    "a.jpg": _image("JPEG"),
}


def _read_all(path: Path) -> None:
    """Every reader that takes such a file, as an input to label and as a dataset."""
    readers: list[Any] = [lambda: read_inputs(path, (1, 4, 4))]
    if path.suffix == ".npz":
        readers += [
            lambda: [read_npz(path, key) for key in npz_keys(path)],
            lambda: load_dataset(path),
        ]
    elif path.suffix == ".npy":
        readers.append(lambda: read_npy(path))
    elif path.suffix == ".mat":
        readers.append(lambda: read_mat(path, ("X", "y")))
    elif "idx" in path.name:
        readers.append(lambda: read_idx(path))
    for read in readers:
        with bounded_memory():
            try:
                read()
            except ValueError as error:
                check_error(error, path.name)


@pytest.mark.parametrize("name", GOOD)
def test_sound_files_are_read(name, folder):
    (folder / name).write_bytes(GOOD[name])
    if not name.endswith(".mat"):
        assert len(read_inputs(folder / name, (1, 4, 4)))
    else:
        assert set(read_mat(folder / name, ("X", "y"))) == {"X", "y"}


@pytest.mark.parametrize("name", GOOD)
@fuzz(60)
@given(data=st.data())
def test_damaged_bytes(name, folder, data):
    path = folder / name
    path.write_bytes(data.draw(damaged_bytes(GOOD[name])))
    _read_all(path)


SHAPES = st.lists(INTERESTING, max_size=4)
DTYPES = st.sampled_from(
    ["<f4", "|u1", ">i8", "|O", "<U5", "<U2147483647", "|V9", "<m8", "|b1", "x"]
)


@fuzz(80)
@given(shape=SHAPES, dtype=DTYPES, packed=st.booleans(), order=st.booleans())
def test_npy_headers_that_lie(folder, shape, dtype, packed, order):
    fields = {"descr": dtype, "fortran_order": order, "shape": tuple(shape)}
    text = repr(fields).ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64)
    path = folder / "lie.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as file:
        file.writestr("x.npy", data)
    _read_all(path)
    path = folder / "lie.npy"
    path.write_bytes(data)
    _read_all(path)


@fuzz(60)
@example(code=8, shape=[0, 2921, 2923, 281273, 3840620], packed=False, body=b"")
@given(
    code=st.integers(0, 15),
    shape=st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 5), max_size=6),
    packed=st.booleans(),
    body=st.binary(max_size=64),
)
def test_idx_headers_that_lie(folder, code, shape, packed, body):
    data = struct.pack(f">BBBB{len(shape)}I", 0, 0, code, len(shape), *shape) + body
    path = folder / "lie-idx"
    path.write_bytes(gzip.compress(data) if packed else data)
    _read_all(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_small_image_that_claims_many_pixels_is_refused(kind, folder):
    data = bytearray(_image(kind))
    if kind == "PNG":  # width and height of IHDR, and its checksum
        data[16:24] = struct.pack(">2I", 13000, 13000)
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    else:  # of the frame header
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">2H", 13000, 13000)
    path = folder / f"many.{kind.lower()}"
    path.write_bytes(bytes(data))
    with bounded_memory(), pytest.raises(ValueError, match="13000 x 13000 pixels, too many"):
        read_inputs(path, (1, 4, 4))


def test_a_small_file_that_unpacks_to_much_is_refused(folder):
    """A kilobyte of gzip or zip may claim a gigabyte of zeros: DEFLATE's own ratio is the bound."""
    zeros = bytes(64 * 2**20)
    body = struct.pack(">BBBBI", 0, 0, 8, 1, 2**31) + zeros
    (folder / "bomb-idx").write_bytes(gzip.compress(body))
    _read_all(folder / "bomb-idx")
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (2147483648,), }".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + zeros
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.npy", data)
    with pytest.raises(ValueError, match="more than the file holds"):
        read_npz(folder / "bomb.npz", "x")
    _read_all(folder / "bomb.npz")
