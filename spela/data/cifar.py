"""CIFAR-10 and CIFAR-100: the binary version's records, or the Python version's pickled arrays."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spela.data.array_pickle import read_pickled_arrays
from spela.data.cifar_names import CIFAR10_NAMES, CIFAR100_NAMES
from spela.data.dataset import Dataset
from spela.data.reading import MAX_DEFLATE_RATIO, one_line, reading
from spela.data.source import Source, first_folder_with

__all__ = ["cifar_sources"]

_IMAGE_SHAPE = (3, 32, 32)  # red, green, blue planes, each row by row
_IMAGE_BYTES = 3 * 32 * 32


@dataclass(frozen=True)
class _Version:
    """One of the archives of a CIFAR dataset."""

    kind: str
    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    parse: Callable[[bytes, str, int], tuple[np.ndarray, np.ndarray]]

    @property
    def files(self) -> tuple[str, ...]:
        """All files that are read."""
        return (*self.train, self.test)


@dataclass(frozen=True)
class _Layout:
    """A CIFAR dataset."""

    name: str
    md5: str  # of the binary version's archive, which is what a download brings
    label_bytes: int  # the last of them is the label: CIFAR-100 puts the coarse one before it
    class_names: tuple[str, ...]
    versions: tuple[_Version, _Version]  # binary, Python


def _parse_records(data: bytes, where: str, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3072) uint8 and labels (N,) of the binary version."""
    record = label_bytes + _IMAGE_BYTES
    if len(data) == 0 or len(data) % record:
        raise ValueError(
            f"{where} has {len(data)} bytes, expected a positive multiple of {record} (one record); "
            "download or copy it again"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, record)
    return records[:, label_bytes:], records[:, label_bytes - 1]


def _parse_pickle(data: bytes, where: str, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3072) uint8 and labels (N,) of the Python version."""
    try:
        content = read_pickled_arrays(data)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not a dict")
        content = {k.decode("latin-1") if isinstance(k, bytes) else k: content[k] for k in content}
        images = content.get("data")
        labels = content.get("labels" if label_bytes == 1 else "fine_labels")
        # Looked at first: lists within lists can claim any number of values.
        if isinstance(labels, list) and all(type(label) is int for label in labels):
            labels = np.array(labels)
        if not (isinstance(images, np.ndarray) and isinstance(labels, np.ndarray)):
            raise ValueError("it holds no array of images, or no list of labels")
        if images.dtype != np.uint8 or images.shape != (len(images), _IMAGE_BYTES):
            raise ValueError(f"its data is {images.dtype} {images.shape}, not uint8 (N, 3072)")
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or labels.size == 0:
            raise ValueError(
                f"its labels are {labels.dtype} {labels.shape}, not one for each image"
            )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"cannot read {where}: {one_line(error)}; download or copy it again"
        ) from error
    return images, labels


def _versions(
    binary: str, folders: tuple[str, str], train: tuple[str, ...], test: str
) -> tuple[_Version, _Version]:
    # The tarballs of https://www.cs.toronto.edu/~kriz/cifar.html; torchvision takes the Python version.
    bins = tuple(f"{file}.bin" for file in train)
    return (
        _Version(
            "binary", f"{binary}-binary.tar.gz", folders[0], bins, f"{test}.bin", _parse_records
        ),
        _Version("Python", f"{binary}-python.tar.gz", folders[1], train, test, _parse_pickle),
    )


_URL = "https://www.cs.toronto.edu/~kriz"
_LAYOUTS = (
    _Layout(
        name="cifar10",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        label_bytes=1,
        class_names=CIFAR10_NAMES,
        versions=_versions(
            "cifar-10",
            ("cifar-10-batches-bin", "cifar-10-batches-py"),
            tuple(f"data_batch_{number}" for number in range(1, 6)),
            "test_batch",
        ),
    ),
    _Layout(
        name="cifar100",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        label_bytes=2,
        class_names=CIFAR100_NAMES,
        versions=_versions(
            "cifar-100", ("cifar-100-binary", "cifar-100-python"), ("train",), "test"
        ),
    ),
)


def cifar_sources() -> tuple[Source, ...]:
    """`cifar10` and `cifar100`."""
    return tuple(_source(layout) for layout in _LAYOUTS)


def _source(layout: _Layout) -> Source:
    binary = layout.versions[0]

    def find(data_root: Path) -> Path | None:
        for version in layout.versions:
            folders = (data_root / version.folder, data_root / layout.name, data_root)
            folder = first_folder_with(version.files, folders)
            if folder is not None:
                return folder
        archives = [data_root / version.archive for version in layout.versions]
        return next((archive for archive in archives if archive.is_file()), None)

    def read(place: Path) -> Dataset:
        packed = place.is_file()
        version = next(
            version
            for version in layout.versions
            if (
                place.name == version.archive
                if packed
                else first_folder_with(version.files, (place,))
            )
        )
        content = _unpacked(place, version) if packed else _contents(place, version)
        parts = {file: _images(*content[file], version, layout) for file in version.files}
        test_x, test_y = parts[version.test]
        return Dataset(
            name=layout.name,
            train_x=torch.cat([parts[file][0] for file in version.train]),
            train_y=torch.cat([parts[file][1] for file in version.train]),
            test_x=test_x,
            test_y=test_y,
            num_classes=len(layout.class_names),
            class_names=layout.class_names,
            source=f"{place} ({version.kind} version)",
        )

    def fetch(staging: Path) -> None:
        from torchvision.datasets import utils  # here because it takes a second to import

        url = f"{_URL}/{binary.archive}"
        utils.download_and_extract_archive(url, staging, filename=binary.archive, md5=layout.md5)
        (staging / binary.archive).unlink()

    python = layout.versions[1]
    return Source(
        name=layout.name,
        find=find,
        read=read,
        fetch=fetch,
        folder=binary.folder,
        files=binary.files,
        note=f"the binary version, {_URL}/{binary.archive}; or torchvision's {python.folder} beside it",
    )


def _contents(folder: Path, version: _Version) -> dict[str, tuple[bytes, str]]:
    """Each file's bytes, and its name for messages."""
    found = {}
    for file in version.files:
        with reading(folder / file, "a CIFAR file"):
            found[file] = (folder / file).read_bytes(), str(folder / file)
    return found


def _unpacked(archive: Path, version: _Version) -> dict[str, tuple[bytes, str]]:
    """As `_contents`, out of an archive that was left packed."""
    found = {}
    most_bytes = archive.stat().st_size * MAX_DEFLATE_RATIO
    with reading(archive, "a CIFAR archive"):
        try:
            with tarfile.open(archive, "r:gz") as tar:
                for member in tar:
                    file = member.name.removeprefix(f"{version.folder}/")
                    wanted = file in version.files and member.isreg() and member.size <= most_bytes
                    stream = tar.extractfile(member) if wanted else None
                    if stream is not None:
                        found[file] = stream.read(), f"{archive}: {member.name}"
        except tarfile.TarError as error:
            raise OSError(one_line(error)) from error
        missing = [file for file in version.files if file not in found]
        if missing:
            raise OSError(f"it does not hold {version.folder}/{missing[0]}")
    return found


def _images(data: bytes, where: str, version: _Version, layout: _Layout) -> tuple[Tensor, Tensor]:
    images, labels = version.parse(data, where, layout.label_bytes)
    labels = labels.astype(np.int64)
    if not 0 <= labels.min() <= labels.max() < len(layout.class_names):
        wrong = labels.max() if labels.min() >= 0 else labels.min()
        raise ValueError(
            f"{where} holds the label {wrong}, expected 0..{len(layout.class_names) - 1}; check that it is "
            f"a {layout.name} file"
        )
    x = np.require(images, requirements=("C", "W")).reshape(-1, *_IMAGE_SHAPE)
    return torch.from_numpy(x), torch.from_numpy(labels)
