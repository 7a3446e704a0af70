"""A user's own dataset: an .npz or .safetensors file, or a folder with four idx files."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from torch import Tensor

from spela.data.arrays import (
    as_indices,
    as_labels,
    as_samples,
    count_classes,
    split_indices,
)
from spela.data.dataset import Dataset, check_indices, check_samples
from spela.data.idx import read_idx_files
from spela.data.npz import npz_keys, read_npz
from spela.data.tensor_file import TENSOR_SUFFIX, read_tensor_dataset
from spela.files.text import printable

__all__ = ["load_file"]

# Names in use for the same four arrays: ours, Keras', MedMNIST's.
_SPLIT_KEYS = (
    ("train_x", "train_y", "test_x", "test_y"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)


def load_file(path: Path, *, split_seed: int | None = 0) -> Dataset:
    """Load a user's own dataset.

    Args:
        path: an .npz file with train_x, train_y, test_x, test_y (or Keras' x_train, ..., or
            MedMNIST's train_images, ...), or with x and y, of which every fifth sample of a class
            becomes a test sample; an optional text array class_names. Labels are whole numbers from 0, or
            class names, which without class_names are numbered in their alphabetical order. Or a
            .safetensors file with train_x, ..., such as `spela features` writes. Or a folder with four idx
            files.
        split_seed: which samples of x and y become test samples; None: all are training and test samples.

    Raises:
        ValueError: the file cannot be read, or its arrays are no dataset.
    """
    if path.is_dir():
        return _load_idx(path)
    if path.suffix.lower() == TENSOR_SUFFIX:
        return read_tensor_dataset(path)
    return _load_npz(path, split_seed)


def _load_idx(folder: Path) -> Dataset:
    arrays = read_idx_files(folder)
    num_classes = count_classes(arrays[1], f"{folder}: training labels")
    class_names = tuple(str(index) for index in range(num_classes))
    return Dataset(folder.resolve().name, *arrays, num_classes, class_names, source=str(folder))


def _load_npz(path: Path, split_seed: int | None) -> Dataset:
    if path.suffix.lower() != ".npz" and not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not a kind of file that holds a dataset: numpy.savez('mine.npz', x=features, "
            "y=labels) makes one; .safetensors files and folders of idx files are read too"
        )
    keys = npz_keys(path)
    split = next((names for names in _SPLIT_KEYS if set(names) <= set(keys)), None)
    if split is None and not {"x", "y"} <= set(keys):
        raise ValueError(
            f"{path} must hold train_x, train_y, test_x, test_y, or x and y; "
            f"it holds {printable(', '.join(keys)) or 'no array'}"
        )
    halves = [key for names in _SPLIT_KEYS for key in names if key in keys]
    if split is None and halves:
        raise ValueError(
            f"{path} holds x and y, a part of which would be the test, and also {', '.join(halves)}: "
            f"leave these out, or name all four {', '.join(_SPLIT_KEYS[0])}"
        )
    of_samples = ("x",) if split is None else (split[0], split[2])
    of_labels = ("y",) if split is None else (split[1], split[3])
    x = [as_samples(read_npz(path, key), f"{path}: {key}") for key in of_samples]
    labels = [read_npz(path, key) for key in of_labels]
    class_names = _class_names(path) if "class_names" in keys else ()
    if labels[0].dtype.kind == "U":
        class_names = class_names or tuple(str(name) for name in np.unique(labels[0]))
        labels = [
            as_indices(array, class_names, f"{path}: {key}")
            for key, array in zip(of_labels, labels, strict=True)
        ]
    y = [as_labels(array, f"{path}: {key}") for key, array in zip(of_labels, labels, strict=True)]
    if not class_names:
        count = count_classes(y[0], f"{path}: {of_labels[0]}")
        class_names = tuple(str(index) for index in range(count))
    if split is None:
        check_samples(x[0], f"{path}: x")  # while its rows are those of the file
        check_indices(y[0], len(class_names), f"{path}: {of_labels[0]}")
        if len(x[0]) != len(y[0]):
            raise ValueError(f"{path}: x has {len(x[0])} samples but y has {len(y[0])} labels")
        if split_seed is None:
            x, y = x * 2, y * 2
        else:
            x, y = _split(x[0], y[0], class_names, path, split_seed)
    return Dataset(
        name=path.stem,
        train_x=x[0],
        train_y=y[0],
        test_x=x[1],
        test_y=y[1],
        num_classes=len(class_names),
        class_names=class_names,
        source=str(path),
    )


def _split(
    x: Tensor, y: Tensor, class_names: tuple[str, ...], path: Path, seed: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Samples and labels, for training and for the test."""
    train, test = split_indices(y, seed=seed)
    lost = sorted(set(y.tolist()) - set(y[train].tolist()))
    if lost and 0 <= lost[0] < len(class_names):
        name = printable(class_names[lost[0]])
        raise ValueError(
            f"{path}: class {name} has one sample, which became a test sample: give "
            "two or more of every class, or a split of your own as train_x, train_y, test_x and test_y"
        )
    return [x[train], x[test]], [y[train], y[test]]


def _class_names(path: Path) -> tuple[str, ...]:
    names = read_npz(path, "class_names")
    if names.dtype.kind != "U" or names.ndim != 1:
        raise ValueError(
            f"{path}: class_names must be a text array of shape (C,), "
            f"got {names.dtype} {names.shape}"
        )
    found = tuple(str(name) for name in names)
    if len(set(found)) < len(found):
        twice = next(name for name, count in Counter(found).items() if count > 1)
        raise ValueError(
            f"{path}: class_names has {twice!r} twice: give each class a name of its own"
        )
    return found
