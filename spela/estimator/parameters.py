"""The settings of SpelaClassifier, checked: each alone, and against a network that goes on learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from spela.estimator.rows import LARGEST

__all__ = [
    "batch_rows",
    "check_built",
    "check_goes_on",
    "check_parameters",
    "cosine_scale",
    "device_of",
    "input_share",
    "layer_sizes",
]

# Found on held-out parts of the training data of `bench.estimator_table`.
_DROPOUT, _MANY = 0.1, 4
_SHARPEST = 20.0


def _is(kind: type, value: object) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def layer_sizes(sizes: Any) -> tuple[Any, ...]:
    """`hidden_layer_sizes` as a tuple, whole numbers as int.

    Example:
        >>> layer_sizes(5), layer_sizes(np.array([3, 4]))
        ((5,), (3, 4))
    """
    if isinstance(sizes, np.ndarray):
        sizes = sizes.tolist()
    sizes = sizes if isinstance(sizes, Sequence) else (sizes,)
    return tuple(int(size) if _is(Integral, size) else size for size in sizes)


def input_share(share: float | str, features: int) -> float:
    """`input_dropout` as a share: "auto" goes by the number of features.

    Example:
        >>> input_share("auto", 64), input_share("auto", 3), input_share(0.3, 3)
        (0.1, 0.0, 0.3)
    """
    if isinstance(share, str):
        return _DROPOUT if features >= _MANY else 0.0
    return float(share)


def cosine_scale(scale: float | str, classes: int) -> float:
    """`scale` as a number: "auto" is twice the number of classes, from 5 to 20.

    Fewer classes lie further apart: with two of them, cosines already differ by 2, with many by hardly more
    than 1.

    Example:
        >>> [cosine_scale("auto", classes) for classes in (2, 3, 100)], cosine_scale(7, 3)
        ([5.0, 6.0, 20.0], 7.0)
    """
    if isinstance(scale, str):
        return max(5.0, min(_SHARPEST, 2.0 * classes))
    return float(scale)


def batch_rows(batch_size: int | str, samples: int) -> int:
    """`batch_size` as a number: "auto" goes by the number of samples.

    Example:
        >>> [batch_rows("auto", samples) for samples in (50, 600, 5000, 60_000)], batch_rows(32, 50)
        ([16, 60, 100, 200], 32)
    """
    if not isinstance(batch_size, str):
        return int(batch_size)  # NumPy's small integers would overflow
    return max(16, min(100 if samples < 20_000 else 200, samples // 10))


def check_parameters(model: Any) -> None:
    """Refuse a setting that is out of range.

    Args:
        model: A `SpelaClassifier`.

    Raises:
        ValueError: Naming the setting, what it must be and what it is.
    """
    sizes = layer_sizes(model.hidden_layer_sizes)
    if not sizes or not all(_is(Integral, size) and size >= 2 for size in sizes):
        raise ValueError(
            "hidden_layer_sizes must hold at least one size, all at least 2, got "
            f"{model.hidden_layer_sizes!r}"
        )
    for name in ("batch_size", "max_iter", "n_iter_no_change"):
        value = getattr(model, name)
        if name == "batch_size" and isinstance(value, str) and value == "auto":
            continue
        endless = name == "n_iter_no_change" and _is(Real, value) and value == math.inf
        if not endless and (not _is(Integral, value) or value < 1):
            choice = {"batch_size": " or 'auto'", "n_iter_no_change": " or infinity"}.get(name, "")
            raise ValueError(f"{name} must be a whole number of at least 1{choice}, got {value!r}")
    for name, low, high in (
        ("learning_rate", 0, LARGEST),
        ("validation_fraction", 0, 1),
    ):
        value = getattr(model, name)
        if not _is(Real, value) or not low < value < high:
            raise ValueError(f"{name} must be a number in ({low}, {high:g}), got {value!r}")
    is_auto = isinstance(model.scale, str) and model.scale == "auto"
    if not is_auto and (not _is(Real, model.scale) or not 0 < model.scale < LARGEST):
        raise ValueError(
            f"scale must be a number in (0, {LARGEST:g}) or 'auto', got {model.scale!r}"
        )
    for name in ("standardize", "early_stopping", "warm_start"):
        value = getattr(model, name)
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} must be True or False, got {value!r}")
    if not isinstance(model.verbose, Integral | np.bool_) or model.verbose < 0:
        raise ValueError(
            f"verbose must be True, False or a whole number of at least 0, got {model.verbose!r}"
        )
    share = model.input_dropout
    is_auto = isinstance(share, str) and share == "auto"
    if not is_auto and (not _is(Real, share) or not 0 <= share < 1):
        raise ValueError(f"input_dropout must be a number in [0, 1) or 'auto', got {share!r}")
    if not _is(Real, model.tol) or math.isnan(model.tol):
        raise ValueError(f"tol must be a number, got {model.tol!r}")
    try:
        device_of(model)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch without CUDA asserts
        raise ValueError(f"device {model.device!r}: {str(error).splitlines()[0]}") from None


def device_of(model: Any) -> torch.device:
    """Where a `SpelaClassifier` is to train: 0 is the first GPU, as in torch."""
    return torch.empty(0, device="cpu" if model.device is None else model.device).device


def check_built(model: Any, goes_on: str) -> None:
    """Refuse to go on with a network that was built otherwise than the settings say.

    Args:
        model: A `SpelaClassifier` that has learnt.
        goes_on: The start of the message: who goes on with which network.

    Raises:
        ValueError: Naming what differs.
    """
    layers = model.net_.local_layers
    first = layers[0]
    for name, built, asked in (
        (
            "hidden_layer_sizes",
            tuple(layer.out_features for layer in layers),
            layer_sizes(model.hidden_layer_sizes),
        ),
        ("activation", first.activation, model.activation),
        ("objective", first.objective, model.objective),
        ("scale", first.scale, cosine_scale(model.scale, len(model.classes_))),
        ("standardize", model.scaler_ is not None, bool(model.standardize)),
        ("device", str(first.weight.device), str(device_of(model))),
    ):
        _check_same(goes_on, name, built, asked)


def _check_same(goes_on: str, name: str, built: object, asked: object) -> None:
    if built != asked:
        raise ValueError(
            f"{goes_on}, whose {name} is {built!r}, not {asked!r}: put that back, or fit anew"
        )


def check_goes_on(model: Any, labels: np.ndarray) -> None:
    """Refuse a warm start of a network that was built otherwise than the settings say, or for other classes.

    Args:
        model: A `SpelaClassifier` that has learnt.
        labels: (N,) of the samples to come.

    Raises:
        ValueError: Naming what differs.
    """
    goes_on = "warm_start goes on with the network of the fit before"
    check_built(model, goes_on)
    # Rows that were learnt are no validation part.
    stops = model.validation_scores_ is not None
    _check_same(goes_on, "early_stopping", stops, bool(model.early_stopping))
    if stops:
        share = float(model.validation_fraction)
        _check_same(goes_on, "validation_fraction", getattr(model, "_held_share", share), share)
    if not np.array_equal(np.unique(labels), model.classes_):
        raise ValueError(
            "warm_start goes on with the classes of the fit before, "
            f"{model.classes_.tolist()}, but y holds {np.unique(labels).tolist()}: use partial_fit for a "
            "part of them, or fit with warm_start=False"
        )
