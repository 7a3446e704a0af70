"""A dataset in one safetensors file: cached features, or tensors of a user's own. No pickle in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spela.data.arrays import as_labels, as_samples, count_classes
from spela.data.dataset import Dataset
from spela.data.reading import one_line, reading
from spela.files.tensors import check_digest

__all__ = [
    "FEATURES_FORMAT",
    "TENSOR_SUFFIX",
    "read_tensor_dataset",
    "read_tensor_facts",
    "read_tensor_inputs",
]

FEATURES_FORMAT = "spela-features-1"
TENSOR_SUFFIX = ".safetensors"
_KEYS = ("train_x", "train_y", "test_x", "test_y")
_INPUTS = ("x", "test_x")


def read_tensor_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file of features says of itself: data, backbone, its weights' hash, image size, ...

    Args:
        path: a safetensors file.

    Returns:
        The facts that `spela features` wrote; nothing for a file from elsewhere.

    Raises:
        ValueError: the file is missing, damaged or no safetensors file.
    """
    _, metadata, _ = _read(path, ())
    return _facts(metadata, path)


def read_tensor_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Read a dataset.

    Args:
        path: a safetensors file with train_x, train_y, test_x, test_y: uint8 pixels or floats (which
            become float32) in the layouts of `as_samples`, and integer labels (N,) or (N, 1). A file of
            `spela features` names its classes; in others the labels must be 0..C-1 without a gap.

    Raises:
        ValueError: the file is missing, truncated or damaged, or its tensors are no dataset.
    """
    path = Path(path)
    tensors, metadata, names = _read(path, _KEYS)
    if set(tensors) != set(_KEYS):
        raise ValueError(
            f"{path} must hold {', '.join(_KEYS)}; it holds {_listed(names)}; `spela features` "
            "writes such files"
        )
    facts = _facts(metadata, path)
    parts = {
        key: (_samples if key.endswith("x") else _labels)(tensors[key], f"{path}: {key}")
        for key in _KEYS
    }
    class_names = tuple(facts.get("class_names", ()))
    if not class_names:
        count = count_classes(parts["train_y"], f"{path}: train_y")
        class_names = tuple(str(index) for index in range(count))
    return Dataset(
        name=facts.get("name", path.stem),
        num_classes=len(class_names),
        class_names=class_names,
        source=str(path),
        **parts,
    )


def read_tensor_inputs(path: str | os.PathLike[str]) -> tuple[np.ndarray, str]:
    """Read samples to label: a file's x, or the test_x of a dataset such as `spela features` writes.

    Args:
        path: a safetensors file.

    Returns:
        The array, and the name that it has in the file.

    Raises:
        ValueError: the file is missing, truncated or damaged, or holds neither.
    """
    tensors, _, names = _read(path, _INPUTS)
    key = next((key for key in _INPUTS if key in tensors), None)
    if key is None:
        raise ValueError(
            f"{os.fspath(path)} must hold the inputs as x or test_x; it holds {_listed(names)}"
        )
    return _floats(tensors[key], f"{os.fspath(path)}: {key}"), key


def _read(
    path: str | os.PathLike[str], wanted: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    with reading(path, "a safetensors file"):
        # safe_open says less, and differently, where the file cannot be opened at all.
        with open(path, "rb"):
            pass
        try:
            with safe_open(path, framework="pt") as file:
                names = sorted(file.keys())
                tensors = {name: file.get_tensor(name) for name in wanted if name in names}
                metadata = file.metadata() or {}
        except (SafetensorError, UnicodeDecodeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{os.fspath(path)} is not a readable safetensors file ({one_line(error)}): it is "
                "damaged or of another kind"
            ) from None
        if wanted and metadata.get("format") == FEATURES_FORMAT:
            try:
                check_digest(Path(path), metadata)
            except ValueError as error:
                raise ValueError(
                    f"{os.fspath(path)} is damaged ({error}): make it again with `spela features`"
                ) from None
        return tensors, metadata, names


def _facts(metadata: dict[str, str], path: str | os.PathLike[str]) -> dict[str, Any]:
    """The facts of a file of `spela features`, checked as far as they are used; else nothing."""
    if metadata.get("format") != FEATURES_FORMAT:
        return {}
    try:
        facts = json.loads(metadata.get("features", ""))
    except (ValueError, RecursionError):
        facts = None
    names = facts.get("class_names") if isinstance(facts, dict) else None
    if (
        not isinstance(facts, dict)
        or not isinstance(facts.get("name"), str)
        or not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
    ):
        raise ValueError(
            f"{os.fspath(path)} is a file of features whose description is damaged; make it again with "
            "`spela features`"
        )
    return facts


def _samples(x: Tensor, where: str) -> Tensor:
    """In the layouts of arrays."""
    return as_samples(_floats(x, where), where)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "no tensor"


def _floats(x: Tensor, where: str) -> np.ndarray:
    """NumPy has no bfloat16."""
    return _array(x.float() if x.dtype == torch.bfloat16 else x, where)


def _labels(y: Tensor, where: str) -> Tensor:
    return as_labels(_array(y, where), where)


def _array(tensor: Tensor, where: str) -> np.ndarray:
    try:
        return tensor.numpy()
    except TypeError:
        raise ValueError(f"{where} is {tensor.dtype}, which is not read: save float32") from None
