"""SVHN (cropped house numbers, 32x32) from its two MATLAB files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spela.data.dataset import Dataset
from spela.data.mat import read_mat
from spela.data.source import Source, first_folder_with

__all__ = ["svhn_source"]

_FOLDER = "SVHN"
_TRAIN, _TEST = "train_32x32.mat", "test_32x32.mat"


def svhn_source() -> Source:
    """`svhn`: the training and test parts, without the extra one."""
    return Source(
        name="svhn", find=_find, read=_read, fetch=_fetch, folder=_FOLDER, files=(_TRAIN, _TEST)
    )


def _find(data_root: Path) -> Path | None:
    # torchvision puts the files into the root it is given.
    folders = (data_root / _FOLDER, data_root / "svhn", data_root)
    return first_folder_with((_TRAIN, _TEST), folders)


def _fetch(staging: Path) -> None:
    from torchvision import datasets  # here because it takes a second to import
    from torchvision.datasets import utils

    for part in ("train", "test"):
        url, file, md5 = datasets.SVHN.split_list[part]
        utils.download_url(url, staging / _FOLDER, file, md5)


def _read(folder: Path) -> Dataset:
    train_x, train_y = _read_mat(folder / _TRAIN)
    test_x, test_y = _read_mat(folder / _TEST)
    return Dataset(
        name="svhn",
        train_x=train_x,
        train_y=train_y,
        test_x=test_x,
        test_y=test_y,
        num_classes=10,
        class_names=tuple("0123456789"),
        source=str(folder),
    )


def _read_mat(path: Path) -> tuple[Tensor, Tensor]:
    content = read_mat(path, ("X", "y"))
    images, labels = content.get("X"), content.get("y")
    if images is None or labels is None:
        raise ValueError(f"{path} must hold X and y, as SVHN's 'Format 2' files do")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != 3:
        raise ValueError(
            f"{path}: X must be uint8 of shape (H, W, 3, N), got {images.dtype} {images.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.size != images.shape[3]:
        raise ValueError(
            f"{path}: y must hold {images.shape[3]} integer labels, one for each image of X, "
            f"got {labels.dtype} {labels.shape}"
        )
    classes = labels.reshape(-1).astype(np.int64)
    if classes.size and not 0 <= classes.min() <= classes.max() <= 10:
        raise ValueError(f"{path}: y must be in 1..10, got {classes.min()}..{classes.max()}")
    classes[classes == 10] = 0  # the files number the digit 0 as 10
    return (
        torch.from_numpy(np.array(images.transpose(3, 2, 0, 1), order="C")),  # (N, 3, H, W)
        torch.from_numpy(classes),
    )
