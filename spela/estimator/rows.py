"""Features and labels as they come: what is refused of them, and a part held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

__all__ = [
    "LARGEST",
    "check_range",
    "classes_as_given",
    "features_as_given",
    "held_out",
    "labels_as_given",
]

LARGEST = float(np.finfo(np.float32).max)
# A layer's norm is a sum of squares of sums of features: from about 1e18 on it overflows float32, all
# cosines are 0 and nothing is learnt.
_LARGEST_SCALED = 1e15


def check_range(
    x: np.ndarray, scaled: np.ndarray | None = None, names: Sequence[str] | None = None
) -> None:
    """Refuse numbers that float32 cannot hold, or whose squares a layer cannot sum.

    Args:
        x: (N, I) features as they came.
        scaled: (N, I) as the network takes them; None: not known yet.
        names: The features' names, if they have some.

    Raises:
        ValueError: If one of x is NaN, infinite or beyond float32, or one of scaled beyond 1e15; names
            the first such feature.

    Example:
        >>> check_range(np.array([[1.0, 2.0], [3.0, 1e40]]))
        Traceback (most recent call last):
        ...
        ValueError: feature 1 of X is 1e+40 in row 1, beyond float32: remove such values or scale it
    """
    numbers, limit = (x, LARGEST) if scaled is None else (scaled, _LARGEST_SCALED)
    if -limit <= numbers.min(initial=0) and numbers.max(initial=0) <= limit:  # false of NaN
        return
    fits = np.abs(numbers) <= limit
    row, feature = (int(index) for index in np.argwhere(~fits)[0])
    name = f"feature {feature}" + ("" if names is None else f" ({names[feature]!r})")
    reason = "beyond float32"
    if scaled is not None:
        reason = f"{scaled[row, feature]:g} as the network takes it, beyond 1e15"
    raise ValueError(
        f"{name} of X is {x[row, feature]:g} in row {row}, {reason}: remove such values or scale it"
    )


def features_as_given(x: Any) -> Any:
    """Features untouched, unless a conversion to float64 would drop something of them without a word.

    Args:
        x: Whatever was given as X.

    Raises:
        ValueError: If values are masked, or are times or dates, whose unit decides the numbers.

    Example:
        >>> features_as_given(np.ma.masked_less([[1.0, -9.0]], 0))
        Traceback (most recent call last):
        ...
        ValueError: X has masked values, which would count as numbers: fill or remove them
    """
    if np.ma.is_masked(x):
        raise ValueError("X has masked values, which would count as numbers: fill or remove them")
    dtypes = getattr(x, "dtypes", [getattr(x, "dtype", None)])  # a data frame has several
    kinds = {getattr(dtype, "kind", "") for dtype in np.ravel(dtypes)}
    if isinstance(x, list | tuple) or "O" in kinds:
        values = np.asarray(x, dtype=object).flat
        kinds |= {value.dtype.kind for value in values if isinstance(value, np.generic)}
    if kinds & {"m", "M"}:
        raise ValueError("X has times or dates: turn them into numbers of a unit that you choose")
    return x


def labels_as_given(y: Any) -> Any:
    """Labels untouched, or in whole numbers where pandas would turn them into floats on the way to NumPy.

    Args:
        y: Whatever was given as y.

    Raises:
        ValueError: If labels are masked.

    Example:
        >>> labels_as_given(np.ma.masked_equal([0, 1, 7], 7))
        Traceback (most recent call last):
        ...
        ValueError: y has masked labels, which would count as classes: remove those samples
    """
    if getattr(y, "ndim", 0) == 2 and hasattr(y, "iloc") and y.shape[1] == 1:
        y = y.iloc[:, 0]  # a frame of one column
    if np.ma.is_masked(y):
        raise ValueError("y has masked labels, which would count as classes: remove those samples")
    own = getattr(getattr(y, "dtype", None), "numpy_dtype", None)  # of pandas' Int64
    if getattr(own, "kind", "") in ("b", "i", "u") and not y.isna().any():
        return y.to_numpy(own)
    return y


def classes_as_given(classes: Any) -> Any:
    """The classes of a `partial_fit`, as `labels_as_given` takes labels; sets and keys become lists.

    Args:
        classes: Whatever was given.

    Raises:
        ValueError: If they are masked, or have more than one axis.

    Example:
        >>> classes_as_given({7: "seven"}.keys())
        [7]
    """
    classes = labels_as_given(classes)
    if not hasattr(classes, "__array__"):
        classes = list(classes)
    if np.ndim(classes) != 1:
        raise ValueError(
            f"classes must be (C,), the labels of all classes, got {np.shape(classes)}"
        )
    return classes


def held_out(
    x: np.ndarray, labels: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Split off a part, by class where that leaves every class in both parts.

    Args:
        x: (N, I) rows.
        labels: (N,) class numbers from 0.
        share: Of the rows to hold out, in (0, 1).
        seed: Of the choice.

    Returns:
        Rows, rows held out, labels, labels held out.

    Raises:
        ValueError: If a part would be empty.

    Example:
        >>> [len(part) for part in held_out(np.ones((20, 3)), np.arange(20) % 2, 0.2, seed=0)]
        [16, 4, 16, 4]
    """
    counts = np.bincount(labels)
    held = math.ceil(share * len(labels))
    by_class = counts.min() > 1 and min(held, len(labels) - held) >= len(counts)
    rest, part, rest_labels, part_labels = train_test_split(
        x,
        labels,
        test_size=share,
        stratify=labels if by_class else None,
        random_state=seed,
    )
    return rest, part, rest_labels, part_labels
