"""CIFAR-10 and CIFAR-100 from their binary version: fixed-size records, no pickle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spela.data.cifar_names import CIFAR10_NAMES, CIFAR100_NAMES
from spela.data.dataset import Dataset
from spela.data.reading import reading
from spela.data.source import Source, first_folder_with

__all__ = ["cifar_sources"]

_IMAGE_SHAPE = (3, 32, 32)  # red, green, blue planes, each row by row
_IMAGE_BYTES = 3 * 32 * 32


@dataclass(frozen=True)
class _Layout:
    """Where a CIFAR archive comes from and how its records are laid out."""

    name: str
    url: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    label_bytes: int  # the last of them is the label: CIFAR-100 puts the coarse one before it
    class_names: tuple[str, ...]


# The tarballs of https://www.cs.toronto.edu/~kriz/cifar.html ("binary version").
_LAYOUTS = (
    _Layout(
        name="cifar10",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test="test_batch.bin",
        label_bytes=1,
        class_names=CIFAR10_NAMES,
    ),
    _Layout(
        name="cifar100",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        label_bytes=2,
        class_names=CIFAR100_NAMES,
    ),
)


def cifar_sources() -> tuple[Source, ...]:
    """`cifar10` and `cifar100`."""
    return tuple(_source(layout) for layout in _LAYOUTS)


def _source(layout: _Layout) -> Source:
    files = (*layout.train, layout.test)

    def find(data_root: Path) -> Path | None:
        return first_folder_with(
            files, (data_root / layout.folder, data_root / layout.name, data_root)
        )

    def read(folder: Path) -> Dataset:
        parts = [_read_records(folder / file, layout) for file in layout.train]
        test_x, test_y = _read_records(folder / layout.test, layout)
        return Dataset(
            name=layout.name,
            train_x=torch.cat([x for x, _ in parts]),
            train_y=torch.cat([y for _, y in parts]),
            test_x=test_x,
            test_y=test_y,
            num_classes=len(layout.class_names),
            class_names=layout.class_names,
            source=str(folder),
        )

    def fetch(staging: Path) -> None:
        from torchvision.datasets import utils  # here because it takes a second to import

        archive = Path(layout.url).name
        utils.download_and_extract_archive(layout.url, staging, filename=archive, md5=layout.md5)
        (staging / archive).unlink()

    return Source(
        name=layout.name,
        find=find,
        read=read,
        fetch=fetch,
        folder=layout.folder,
        files=(*files, f"(the binary version, {layout.url}; the Python version is pickle)"),
    )


def _read_records(path: Path, layout: _Layout) -> tuple[Tensor, Tensor]:
    record = layout.label_bytes + _IMAGE_BYTES
    with reading(path, f"a {layout.name} binary file"):
        data = np.fromfile(path, dtype=np.uint8)
    if data.size == 0 or data.size % record:
        raise ValueError(
            f"{path} has {data.size} bytes, expected a positive multiple of {record} (one "
            f"{layout.name} record); download or copy it again"
        )
    records = data.reshape(-1, record)  # (N, label bytes + 3072)
    labels = records[:, layout.label_bytes - 1].astype(np.int64)
    if labels.max() >= len(layout.class_names):
        raise ValueError(
            f"{path} holds the label {labels.max()}, expected 0..{len(layout.class_names) - 1}; "
            f"check that it is a {layout.name} binary file"
        )
    images = np.ascontiguousarray(records[:, layout.label_bytes :]).reshape(-1, *_IMAGE_SHAPE)
    return torch.from_numpy(images), torch.from_numpy(labels)
