"""A user's own dataset: an .npz or .safetensors file, or a folder with four idx files."""

from __future__ import annotations

from pathlib import Path

from spela.data.arrays import as_labels, as_samples, count_classes, split_indices
from spela.data.dataset import Dataset
from spela.data.idx import read_idx_files
from spela.data.npz import npz_keys, read_npz
from spela.data.tensor_file import TENSOR_SUFFIX, read_tensor_dataset

__all__ = ["load_file"]

# Names in use for the same four arrays: ours, Keras', MedMNIST's.
_SPLIT_KEYS = (
    ("train_x", "train_y", "test_x", "test_y"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)


def load_file(path: Path, *, split_seed: int = 0) -> Dataset:
    """Load a user's own dataset.

    Args:
        path: an .npz file with train_x, train_y, test_x, test_y (or Keras' x_train, ..., or
            MedMNIST's train_images, ...), or with x and y, of which every fifth sample of a class
            becomes a test sample; an optional text array class_names. Or a .safetensors file with
            train_x, ..., such as `spela features` writes. Or a folder with four idx files.
        split_seed: which samples of x and y become test samples.

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


def _load_npz(path: Path, split_seed: int) -> Dataset:
    keys = npz_keys(path)
    split = next((names for names in _SPLIT_KEYS if set(names) <= set(keys)), None)
    if split is not None:
        train_x = as_samples(read_npz(path, split[0]), f"{path}: {split[0]}")
        train_y = as_labels(read_npz(path, split[1]), f"{path}: {split[1]}")
        test_x = as_samples(read_npz(path, split[2]), f"{path}: {split[2]}")
        test_y = as_labels(read_npz(path, split[3]), f"{path}: {split[3]}")
        label_key = split[1]
    elif {"x", "y"} <= set(keys):
        x = as_samples(read_npz(path, "x"), f"{path}: x")
        y = as_labels(read_npz(path, "y"), f"{path}: y")
        if len(x) != len(y):
            raise ValueError(f"{path}: x has {len(x)} samples but y has {len(y)} labels")
        train, test = split_indices(y, seed=split_seed)
        train_x, train_y, test_x, test_y = x[train], y[train], x[test], y[test]
        label_key = "y"
    else:
        raise ValueError(
            f"{path} must hold train_x, train_y, test_x, test_y, or x and y; "
            f"it holds {', '.join(keys) or 'no array'}"
        )
    if "class_names" in keys:
        class_names = _class_names(path)
    else:
        count = count_classes(train_y, f"{path}: {label_key}")
        class_names = tuple(str(index) for index in range(count))
    return Dataset(
        name=path.stem,
        train_x=train_x,
        train_y=train_y,
        test_x=test_x,
        test_y=test_y,
        num_classes=len(class_names),
        class_names=class_names,
        source=str(path),
    )


def _class_names(path: Path) -> tuple[str, ...]:
    names = read_npz(path, "class_names")
    if names.dtype.kind != "U" or names.ndim != 1:
        raise ValueError(
            f"{path}: class_names must be a text array of shape (C,), "
            f"got {names.dtype} {names.shape}"
        )
    return tuple(str(name) for name in names)
