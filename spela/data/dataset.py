"""A classification dataset in memory, checked once when it is made."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from spela.files.text import printable

__all__ = ["Dataset", "check_indices", "check_samples", "check_values"]

_MOST = 1e15  # sums of squares stay in float32, which norms of rows need


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test samples with their labels, as tensors on one device.

    Args:
        name: the dataset's name, for messages and records.
        train_x: (N, C, H, W) or (N, F); uint8 pixels 0..255 or float32. `prepare` makes inputs.
        train_y: (N,) int64 class indices 0..num_classes-1.
        test_x: like train_x, with its own number of samples.
        test_y: like train_y.
        num_classes: C, at least 2.
        class_names: C names, in the order of the indices.
        source: where it was read from, for messages and records.

    Raises:
        TypeError: a part is not a tensor.
        ValueError: wrong dtype or shape, unequal lengths, no samples, a label outside 0..C-1, NaN
            or Inf, or a largest value beyond 1e15 or below 1e-15.

    Example:
        >>> x, y = torch.eye(4), torch.tensor([0, 1, 0, 1])
        >>> Dataset("eye", x, y, x, y, num_classes=2, class_names=("a", "b")).sample_shape
        (4,)
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int
    class_names: tuple[str, ...]
    source: str = ""

    def __post_init__(self) -> None:
        label = f"dataset {self.name!r}" + (f" ({self.source})" if self.source else "")
        if self.num_classes < 2:
            only = f", {printable(self.class_names[0])}" if len(self.class_names) == 1 else ""
            raise ValueError(
                f"{label}: num_classes is {self.num_classes}{only}; a classifier needs at least 2 classes"
            )
        if len(self.class_names) != self.num_classes:
            raise ValueError(
                f"{label}: class_names must have num_classes = {self.num_classes} entries, "
                f"got {len(self.class_names)}"
            )
        for part in ("train", "test"):
            x, y = getattr(self, f"{part}_x"), getattr(self, f"{part}_y")
            if not isinstance(x, Tensor) or not isinstance(y, Tensor):
                raise TypeError(f"{label}: {part}_x and {part}_y must be tensors")
            check_samples(x, f"{label}: {part}_x")
            check_indices(y, self.num_classes, f"{label}: {part}_y")
            if len(x) != len(y):
                raise ValueError(
                    f"{label}: {part}_x has {len(x)} samples but {part}_y has {len(y)} labels"
                )
        train, test = self.train_x, self.test_x
        if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
            raise ValueError(
                f"{label}: train_x samples are {tuple(train.shape[1:])} {train.dtype} but test_x "
                f"samples are {tuple(test.shape[1:])} {test.dtype}"
            )
        if len({t.device for t in (train, self.train_y, test, self.test_y)}) > 1:
            raise ValueError(f"{label}: all tensors must be on one device; use .to(device)")

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample, (C, H, W) or (F,)."""
        return tuple(self.train_x.shape[1:])

    @property
    def num_features(self) -> int:
        """The number of values in one sample: what a linear layer takes after flattening."""
        return math.prod(self.sample_shape)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of samples, labels and class names: the same data under any name, wherever it lies."""
        found = hashlib.sha256(repr(self.class_names).encode())
        for tensor in (self.train_x, self.train_y, self.test_x, self.test_y):
            found.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(tensor.detach().cpu().contiguous().numpy().data)
        return found.hexdigest()

    def with_classes(self, names: tuple[str, ...]) -> Dataset:
        """The same dataset with its labels in another order of the classes, such as a trained network's.

        Args:
            names: The dataset's own, and perhaps others that it has no sample of. Or as many other names, one
                of the two being the plain numbers 0..C-1: nothing says which class is which, and labels stay.

        Raises:
            ValueError: names of other classes.

        Example:
            >>> x, y = torch.eye(4), torch.tensor([0, 1, 0, 1])
            >>> data = Dataset("eye", x, y, x, y, num_classes=2, class_names=("a", "b"))
            >>> data.with_classes(("b", "a")).train_y
            tensor([1, 0, 1, 0])
        """
        numbers = tuple(str(index) for index in range(self.num_classes))
        same = set(self.class_names) <= set(names)
        unnamed = (
            len(names) == self.num_classes and numbers in (self.class_names, names) and not same
        )
        if self.class_names == names or unnamed:
            return self
        if not same or len(set(names)) < len(names):
            ours, theirs = (
                f"{len(some)} classes ({', '.join(some[:3])}{', ...' if len(some) > 3 else ''})"
                for some in (self.class_names, names)
            )
            raise ValueError(
                f"{self.name} has {ours}, expected are {theirs}: take data of the same classes, which a file "
                "names in class_names"
            )
        places = torch.tensor([names.index(name) for name in self.class_names])
        places = places.to(self.train_y.device)
        return replace(
            self,
            num_classes=len(names),
            class_names=names,
            train_y=places[self.train_y],
            test_y=places[self.test_y],
        )

    def to(self, device: torch.device | str) -> Dataset:
        """The same dataset with all tensors on `device`."""
        return replace(
            self,
            train_x=self.train_x.to(device),
            train_y=self.train_y.to(device),
            test_x=self.test_x.to(device),
            test_y=self.test_y.to(device),
        )

    def subset(self, *, train: int | None = None, test: int | None = None) -> Dataset:
        """A smaller dataset: samples at equal distances, so that files sorted by class stay mixed.

        Args:
            train: number of training samples, or None for all.
            test: number of test samples, or None for all.

        Raises:
            ValueError: a number below 1 or above what there is.

        Example:
            >>> x, y = torch.eye(4), torch.tensor([0, 0, 1, 1])
            >>> data = Dataset("eye", x, y, x, y, num_classes=2, class_names=("a", "b"))
            >>> data.subset(train=2).train_y
            tensor([0, 1])
        """
        changes: dict[str, Tensor] = {}
        for part, count in (("train", train), ("test", test)):
            if count is None:
                continue
            x, y = getattr(self, f"{part}_x"), getattr(self, f"{part}_y")
            if not 1 <= count <= len(y):
                raise ValueError(
                    f"dataset {self.name!r}: {part} must be between 1 and {len(y)}, got {count}"
                )
            index = torch.arange(count, device=y.device) * len(y) // count
            changes[f"{part}_x"], changes[f"{part}_y"] = x[index], y[index]
        return replace(self, **changes)  # type: ignore[arg-type]


def check_samples(x: Tensor, where: str) -> None:
    """Refuse what can be no samples of a dataset.

    Args:
        x: (N, C, H, W) or (N, F), uint8 or float32.
        where: Its name for messages.

    Raises:
        ValueError: As `Dataset`.

    Example:
        >>> check_samples(torch.zeros(0, 3), "x")
        Traceback (most recent call last):
        ...
        ValueError: x must be (N, F) or (N, C, H, W) with at least one sample, got shape (0, 3)
    """
    if x.dtype not in (torch.uint8, torch.float32):
        raise ValueError(f"{where} must be uint8 (pixels) or float32 (features), got {x.dtype}")
    if x.ndim not in (2, 4) or x.numel() == 0:
        raise ValueError(
            f"{where} must be (N, F) or (N, C, H, W) with at least one sample, "
            f"got shape {tuple(x.shape)}"
        )
    if x.dtype == torch.float32:
        check_values(x, where)


def check_values(x: Tensor, where: str) -> None:
    """Refuse values whose sums of squares float32 does not hold: norms of rows are such.

    Args:
        x: (N, ...) of floats.
        where: Its name for messages.

    Raises:
        ValueError: NaN or Inf, or a largest value beyond 1e15 or below 1e-15.

    Example:
        >>> check_values(torch.tensor([[1e20, 2.0]]), "x")
        Traceback (most recent call last):
        ...
        ValueError: x has a largest value of 1e+20, and sums of squares are float32 here: divide every \
feature by its standard deviation
    """
    # The extremes carry NaN and Inf along and need no temporary the size of the data.
    low, high = torch.aminmax(x)
    if bool(torch.isfinite(low) & torch.isfinite(high)):
        largest = float(torch.maximum(-low, high))
        if 0 < largest < 1 / _MOST or largest > _MOST:
            raise ValueError(
                f"{where} has a largest value of {largest:g}, and sums of squares are float32 here: divide "
                "every feature by its standard deviation"
            )
        return
    bad = ~torch.isfinite(x.flatten(1))
    first = int(bad.any(dim=1).nonzero()[0])
    raise ValueError(
        f"{where} has {int(bad.sum())} values that are NaN, Inf or beyond float32, the first in "
        f"sample {first}; remove or replace them"
    )


def check_indices(y: Tensor, num_classes: int, where: str) -> None:
    """Refuse what are no class indices (N,) int64 below `num_classes`, naming the first that is none."""
    if y.dtype != torch.int64 or y.ndim != 1 or y.numel() == 0:
        raise ValueError(
            f"{where} must be (N,) int64 class indices with at least one label, "
            f"got shape {tuple(y.shape)} {y.dtype}"
        )
    bad = (y < 0) | (y >= num_classes)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"{where} must be in 0..{num_classes - 1}, one of the {num_classes} classes, but that of sample "
            f"{first} is {int(y[first])}"
        )
