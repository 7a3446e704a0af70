"""What is held out of the training split, and that no test image is among it."""

from __future__ import annotations

import torch

from bench.tuning_table import parted_training
from spela.data import load_dataset


def test_training_images_are_parted_and_test_images_left_out() -> None:
    data = load_dataset("digits")
    parted = parted_training(data, 200)
    assert len(parted.test_y) == 200
    assert len(parted.train_y) == len(data.train_y) - 200

    def rows(*parts: torch.Tensor) -> list[list[int]]:
        return sorted(torch.cat([part.flatten(1) for part in parts]).tolist())

    assert rows(parted.train_x, parted.test_x) == rows(data.train_x)
    same = parted_training(data, 200)
    assert torch.equal(parted.test_x, same.test_x)
