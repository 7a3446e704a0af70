"""The rules by which a NumPy array of a file becomes samples or labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_indices", "as_labels", "as_samples", "as_tensor", "count_classes", "split_indices"]

_CHANNELS = (1, 3, 4)
_logger = logging.getLogger(__name__)


def as_tensor(x: Tensor | np.ndarray, where: str) -> Tensor:
    """A tensor of a tensor (itself) or of an array (a copy, of any layout or byte order).

    Args:
        x: What was given.
        where: its name for messages.

    Returns:
        An array as a tensor of its dtype, on the CPU.

    Raises:
        TypeError: neither, an array that holds no numbers, or a sparse tensor.
        ValueError: values are masked, which a tensor cannot say.

    Example:
        >>> as_tensor(np.array([1.5, 2.0], ">f4"), "x")
        tensor([1.5000, 2.0000])
    """
    if isinstance(x, Tensor):
        if x.layout != torch.strided:
            raise TypeError(f"{where} must be dense, got {x.layout}: use {where}.to_dense()")
        return x
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "buif":
        kind = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(f"{where} must be a tensor or an array of numbers, got {kind}")
    if np.ma.is_masked(x):
        raise ValueError(
            f"{where} has masked values, which would count as numbers: fill or remove them"
        )
    return torch.from_numpy(np.array(x, x.dtype.newbyteorder("="), order="C"))


def as_samples(array: np.ndarray, where: str) -> Tensor:
    """Turn an array of images or features into samples as `Dataset` keeps them.

    uint8 stays uint8 and means pixels (0..255); floats become float32 and keep their values; other
    integers and booleans are refused, because nothing says whether they are pixels or features.

    Args:
        array: (N, F) features; (N, H, W), (N, H, W, C) or (N, C, H, W) images. Four axes are
            channels-last if the last is 1, 3 or 4 and the second is not.
        where: file or array name for messages.

    Returns:
        uint8 or float32, (N, F) or (N, C, H, W).

    Raises:
        ValueError: another dtype or number of axes.

    Example:
        >>> as_samples(np.zeros((2, 5, 6, 3), np.uint8), "photos").shape
        torch.Size([2, 3, 5, 6])
    """
    if array.dtype == np.uint8:
        target: type[np.uint8 | np.float32] = np.uint8
    elif array.dtype.kind == "f":
        target = np.float32
    else:
        raise ValueError(
            f"{where} must be uint8 (pixels 0..255) or float (features), got {array.dtype}; "
            "make pixels of 0..255 uint8 and all else float32, deeper pixels divided by their full scale"
        )
    if array.ndim not in (2, 3, 4):
        raise ValueError(
            f"{where} must be (N, F) features or (N, H, W), (N, H, W, C), (N, C, H, W) images, "
            f"got shape {array.shape}"
        )
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in _CHANNELS and array.shape[1] not in _CHANNELS:
        array = array.transpose(0, 3, 1, 2)
    elif (
        array.ndim == 4
        and array.shape[1] not in _CHANNELS
        and array.shape[3] < min(array.shape[1:3])
    ):
        _, channels, height, width = array.shape
        _logger.warning(
            "%s: %s is read as %d channels of %d x %d pixels: if the channels are the last axis, give "
            "x.transpose(0, 3, 1, 2)",
            where, array.shape, channels, height, width,
        )  # fmt: skip
    with np.errstate(over="ignore"):  # what overflows float32 becomes Inf, which Dataset refuses
        array = np.ascontiguousarray(array, dtype=target)
    return torch.from_numpy(array)


def as_indices(array: np.ndarray, names: Sequence[str], where: str) -> np.ndarray:
    """Turn an array of class names into class indices.

    Args:
        array: (N,) or (N, 1) text.
        names: The classes, in the order of their indices.
        where: file or array name for messages.

    Returns:
        int64, of the array's shape.

    Raises:
        ValueError: another dtype, or a name that is none of `names`.

    Example:
        >>> as_indices(np.array(["dog", "cat"]), ("cat", "dog"), "y")
        array([1, 0])
    """
    if array.dtype.kind != "U":
        raise ValueError(f"{where} must be class names, as the other labels are, got {array.dtype}")
    found, places = np.unique(array, return_inverse=True)
    unknown = [str(name) for name in found if str(name) not in names]
    if unknown:
        raise ValueError(
            f"{where} holds {unknown[0]!r}, which is no class: the classes are {', '.join(names[:5])}"
            + (", ..." if len(names) > 5 else "")
        )
    indices = np.array([names.index(str(name)) for name in found], np.int64)
    return indices[places].reshape(array.shape)


def as_labels(array: np.ndarray, where: str) -> Tensor:
    """Turn an array of class indices into labels.

    Args:
        array: (N,) or (N, 1) integers.
        where: file or array name for messages.

    Returns:
        (N,) int64.

    Raises:
        ValueError: floats (also integral ones), booleans, text, or another shape.

    Example:
        >>> as_labels(np.array([2, 0], np.uint8), "y")
        tensor([2, 0])
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{where} must be class indices of shape (N,), got shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"{where} must be integer class indices 0..C-1 or class names as text, got {array.dtype}; "
            f"convert with .astype({'str' if array.dtype.kind == 'S' else 'int64'!r})"
        )
    return torch.from_numpy(array.astype(np.int64))


def count_classes(labels: Tensor, where: str) -> int:
    """The number of classes C where nothing else names it: the training labels must be 0..C-1.

    Args:
        labels: (N,) int64, the training labels.
        where: file or array name for messages.

    Raises:
        ValueError: no labels, a negative one, only one class, or a class without a sample (as with
            labels that start at 1).

    Example:
        >>> count_classes(torch.tensor([0, 2, 1, 1]), "y")
        3
    """
    if labels.numel() == 0:
        raise ValueError(f"{where} holds no labels")
    low, high = (int(value) for value in torch.aminmax(labels))
    if low < 0:
        raise ValueError(f"{where} must hold class indices 0..C-1, found {low}")
    if low == high:
        raise ValueError(f"{where} holds only class {low}; a classifier needs at least 2 classes")
    # With more classes than samples one is missing for sure: a huge label must allocate nothing.
    if high < labels.numel():
        missing = (torch.bincount(labels) == 0).nonzero().flatten().tolist()
    else:
        missing = sorted(set(range(labels.numel() + 1)) - set(labels.tolist()))
    if missing:
        raise ValueError(
            f"{where} goes up to {high} but class {missing[0]} has no training sample; number the "
            "classes 0..C-1, or give their names: in an .npz file as labels, or as an array class_names of "
            "length C beside them"
        )
    return high + 1


def split_indices(labels: Tensor, *, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """Split samples into training and test, each class in the same proportion (within one sample).

    The samples are sorted by class and every fifth is taken for the test; both parts keep the
    order of the file.

    Args:
        labels: (N,) int64.
        seed: which sample of a class is taken: shuffled by this seed, or file order if None.

    Returns:
        Training and test indices, int64, ascending.

    Example:
        >>> split_indices(torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]))
        (tensor([1, 2, 3, 4, 6, 7, 8, 9]), tensor([0, 5]))
    """
    order = torch.arange(labels.numel(), device="cpu")
    if seed is not None:
        order = torch.randperm(
            labels.numel(), generator=torch.Generator().manual_seed(seed), device="cpu"
        )
    order = order[torch.argsort(labels[order], stable=True)]
    in_test = torch.zeros(labels.numel(), dtype=torch.bool, device="cpu")
    in_test[order[::5]] = True
    return (~in_test).nonzero().flatten(), in_test.nonzero().flatten()
