"""`digits`: the 1,797 handwritten digits, 8x8 pixels, that come inside scikit-learn."""

from __future__ import annotations

from pathlib import Path

import torch

from spela.data.arrays import split_indices
from spela.data.dataset import Dataset
from spela.data.source import Source

__all__ = ["digits_source"]


def digits_source() -> Source:
    """The embedded dataset: always found, never downloaded."""
    return Source(name="digits", find=lambda data_root: data_root, read=_read)


def _read(_: Path) -> Dataset:
    from sklearn.datasets import load_digits  # here because it takes a second to import

    bunch = load_digits()
    # The values are 0..16. As float32, v / 16 is exact; in uint8, 255/16 would have to be rounded.
    x = torch.from_numpy(bunch.images).to(torch.float32).div_(16.0)[:, None]  # (1797, 1, 8, 8)
    y = torch.from_numpy(bunch.target).to(torch.int64)
    train, test = split_indices(y)  # 1,437 and 360, by class, no random numbers
    return Dataset(
        name="digits",
        train_x=x[train],
        train_y=y[train],
        test_x=x[test],
        test_y=y[test],
        num_classes=10,
        class_names=tuple("0123456789"),
        source="scikit-learn",
    )
