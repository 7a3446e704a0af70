"""CIFAR as torchvision leaves it: pickled arrays, read without unpickling anything; packed archives."""

from __future__ import annotations

import os
import pickle
import struct
import tarfile
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spela.data import is_available, load_dataset
from spela.data.array_pickle import read_pickled_arrays
from spela.data.cifar import _parse_pickle

BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def _python2(images: np.ndarray, labels: list[int], key: str) -> bytes:
    """The instructions of Python 2's cPickle, protocol 2: what the real files hold."""
    text = lambda value: b"U" + bytes([len(value)]) + value  # noqa: E731
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    rows = len(images).to_bytes(4, "little")
    data = images.tobytes()
    return (
        b"\x80\x02}q\x01("
        + text(b"batch_label") + b"q\x02" + text(b"training batch 1 of 5") + b"q\x03"
        + text(key.encode()) + b"q\x04]q\x05(" + numbers + b"e"
        + text(b"data") + b"q\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08"
        b"K\x00\x85U\x01b\x87Rq\x09(K\x01J" + rows
        + b"M\x00\x0c\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(data).to_bytes(4, "little") + data + b"tbu."
    )  # fmt: skip


def _content(seed: int, classes: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (4, 3072), np.uint8), rng.integers(0, classes, 4).tolist()


def _write(folder: Path, name: str, files: tuple[str, ...], kind: str) -> dict[str, Any]:
    folder.mkdir(parents=True)
    parts = {}
    key, classes = ("labels", 10) if name == "cifar10" else ("fine_labels", 100)
    for seed, file in enumerate(files):
        images, labels = parts[file] = _content(seed, classes)
        if kind == "python2":
            data = _python2(images, labels, key)
        else:
            other = {"coarse_labels": [19] * 4, "filenames": ["a.png", "b"], "batch_label": None}
            keys = {key: labels, "data": images, **other}
            if kind.endswith("bytes"):
                keys = {name.encode(): value for name, value in keys.items()}
            data = pickle.dumps(keys, protocol=int(kind[0]))
        (folder / file).write_bytes(data)
    return parts


def _same(data: Any, parts: dict[str, Any], train: tuple[str, ...], test: str) -> None:
    pixels = np.concatenate([parts[file][0] for file in train]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(data.train_x.numpy(), pixels)
    assert data.train_y.tolist() == [label for file in train for label in parts[file][1]]
    np.testing.assert_array_equal(data.test_x.numpy(), parts[test][0].reshape(-1, 3, 32, 32))
    assert data.test_y.tolist() == parts[test][1]


@pytest.mark.parametrize("kind", ["python2", "2", "3", "4", "2 bytes", "4 bytes"])
@pytest.mark.parametrize("where", ["cifar-10-batches-py", "cifar10", "."])
def test_the_python_version(tmp_path: Path, kind: str, where: str) -> None:
    parts = _write(tmp_path / "root" / where, "cifar10", BATCHES, kind)
    data = load_dataset("cifar10", tmp_path / "root", download=False)
    _same(data, parts, BATCHES[:5], "test_batch")
    assert data.source == f"{tmp_path / 'root' / where} (Python version)"
    assert data.class_names[3] == "cat"


@pytest.mark.parametrize("kind", ["python2", "4"])
def test_cifar100_takes_the_fine_label(tmp_path: Path, kind: str) -> None:
    parts = _write(tmp_path / "cifar-100-python", "cifar100", ("train", "test"), kind)
    _same(load_dataset("cifar100", tmp_path, download=False), parts, ("train",), "test")


@pytest.mark.parametrize("kind", ["binary", "python"])
def test_an_archive_left_packed(tmp_path: Path, kind: str) -> None:
    if kind == "python":
        folder = tmp_path / "made" / "cifar-100-python"
        parts = _write(folder, "cifar100", ("train", "test"), "python2")
        files = ("train", "test")
    else:
        folder, files = tmp_path / "made" / "cifar-100-binary", ("train.bin", "test.bin")
        folder.mkdir(parents=True)
        parts = {}
        for seed, file in enumerate(files):
            images, labels = parts[file] = _content(seed, 100)
            rows = [bytes([7, y]) + x.tobytes() for x, y in zip(images, labels, strict=True)]
            (folder / file).write_bytes(b"".join(rows))
    archive = tmp_path / f"cifar-100-{kind}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    assert is_available("cifar100", tmp_path)
    data = load_dataset("cifar100", tmp_path, download=False)
    _same(data, parts, files[:1], files[1])
    assert data.source == f"{archive} ({kind.replace('python', 'Python')} version)"
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name, "made"]
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(
        ValueError, match=rf"cannot read .*cifar-100-{kind}\.tar\.gz as a CIFAR archive"
    ):
        load_dataset("cifar100", tmp_path, download=False)


def test_the_binary_version_comes_first(tmp_path: Path) -> None:
    _write(tmp_path / "cifar-100-python", "cifar100", ("train", "test"), "python2")
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for file in ("train.bin", "test.bin"):
        (folder / file).write_bytes(bytes([7, 99]) + bytes(3072))
    data = load_dataset("cifar100", tmp_path, download=False)
    assert data.source == f"{folder} (binary version)"
    assert data.train_y.tolist() == [99]


class _Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_file_that_would_run_code_runs_none(tmp_path: Path, protocol: int) -> None:
    _write(tmp_path / "cifar-10-batches-py", "cifar10", BATCHES, "4")
    images, labels = _content(0, 10)
    bad = {"data": images, "labels": labels, "extra": _Runs(tmp_path / "ran")}
    file = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(pickle.dumps({"extra": bad.pop("extra"), **bad}, protocol=protocol))
    with pytest.raises(
        ValueError, match=r"data_batch_3: .*system, which is no array: nothing of it was run"
    ):
        load_dataset("cifar10", tmp_path, download=False)
    assert not (tmp_path / "ran").exists()
    pickle.loads(file.read_bytes())
    assert (tmp_path / "ran").exists(), "the file was harmless"


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\nopen\n(S'x'\ntR.",  # GLOBAL, REDUCE
        b"(S'1'\nibuiltins\neval\n.",  # INST
        b"(cbuiltins\neval\nS'1'\no.",  # OBJ
        b"\x80\x02cbuiltins\neval\n)\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x02S'x'\nQ.",  # BINPERSID
        b"Pname\n.",  # PERSID
        b"cnumpy\ndtype\n(dS'__setstate__'\nS'x'\nsb.",  # BUILD on a name
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(S'x'\ntR.",
        b"cnumpy\nndarray\n(I3\ntR.",  # an allocation
    ],
)
def test_other_instructions_are_refused(content: bytes) -> None:
    with pytest.raises(
        ValueError, match=r"it is a pickle that names|no array needs|damaged pickle"
    ):
        read_pickled_arrays(content)


ARRAYS = [
    np.arange(6).reshape(2, 3).astype(dtype)
    for dtype in ("u1", "i1", "<i2", ">i2", "<u4", ">i8", "<f4", ">f8", "f2", "?")
]


@pytest.mark.parametrize(
    "array", [*ARRAYS, np.asfortranarray(ARRAYS[4]), np.zeros((0, 3)), np.float64([5])]
)
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_come_back_by_value(array: np.ndarray, protocol: int) -> None:
    found = read_pickled_arrays(
        pickle.dumps([array, (1, -2, 2.5, True, None, "ü", b"\xff"), array], protocol)
    )
    assert found[1] == (1, -2, 2.5, True, None, "ü", b"\xff")
    for one in (found[0], found[2]):
        np.testing.assert_array_equal(one, array)
        assert one.dtype == array.dtype.newbyteorder("=")
        assert one.dtype.isnative


def test_damage_is_one_line_and_ends_soon() -> None:
    whole = pickle.dumps({"data": np.arange(40, dtype=np.int32), "labels": [1, 2, 3]}, protocol=4)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(1500):
        broken = bytearray(whole)
        for at in rng.integers(0, len(whole), 2):
            broken[at] = rng.integers(0, 256)
        with suppress(ValueError):  # a flipped number may be another number
            read_pickled_arrays(bytes(broken[: rng.integers(1, len(whole) + 1)]))
            continue
        refused += 1
    assert refused > 1000
    objects = pickle.dumps(np.array([{}, "x"], dtype=object), protocol=4)
    with pytest.raises(ValueError, match="an array of 'O8', not of numbers"):
        read_pickled_arrays(objects)
    # Lists of lists, twice each: 2^60 leaves for whoever walks them.
    lists = (b"(lp%d\ng%d\nag%d\na" % (i, i - 1, i - 1) for i in range(1, 60))
    assert len(read_pickled_arrays(b"(lp0\n" + b"".join(lists) + b".")) == 2


def test_labels_that_claim_any_number_are_refused_before_they_are_counted() -> None:
    labels: list = [0] * 10
    for _ in range(9):
        labels = [labels] * 10  # ten thousand million of them, in 3 kB
    image = np.zeros((1, 3072), np.uint8)
    with pytest.raises(ValueError, match="no list of labels"):
        _parse_pickle(pickle.dumps({"data": image, "labels": labels}, 2), "batch", 1)


def test_a_small_file_that_makes_much_is_refused() -> None:
    """One text in the memo, encoded again and again; an array built again and again."""
    text = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20)
    content = b"\x80\x02(c_codecs\nencode\nq\x00" + text + b"q\x01X\x06\0\0\0latin1q\x02"
    content += b"h\x00h\x01h\x02\x86R" * 400 + b"l."
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="makes far more data than it holds"):
            read_pickled_arrays(content)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(content)
    finally:
        tracemalloc.stop()


def test_many_arrays_are_read_in_a_time_that_grows_with_them() -> None:
    """Every array once searched the whole memo for its place: minutes for a file of a MB."""
    arrays = [np.full(2, number % 256, np.uint8) for number in range(8000)]
    began = time.perf_counter()
    found = read_pickled_arrays(pickle.dumps(arrays, protocol=2))
    assert time.perf_counter() - began < 20
    assert [int(array[1]) for array in found] == [number % 256 for number in range(8000)]
