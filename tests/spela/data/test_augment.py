"""Crops and flips against a loop over images, and what they leave alone."""

from __future__ import annotations

import pytest
import torch

from spela.data.augment import crop_and_flip


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("shape", [(40, 3, 8, 6), (5, 1, 1, 9), (0, 3, 4, 4)])
def test_each_image_is_a_window_of_its_padded_self(shape, dtype) -> None:
    x = torch.randint(1, 200, shape).to(dtype)
    before = x.clone()
    found = crop_and_flip(x, torch.Generator().manual_seed(3), padding=2)
    assert found.shape == x.shape
    assert found.dtype == dtype
    assert torch.equal(x, before)
    seen = set()
    for image, made in zip(x, found, strict=True):
        padded = torch.nn.functional.pad(image, (2,) * 4)
        height, width = image.shape[1:]
        matches = [
            (down, right, flip)
            for down in range(5)
            for right in range(5)
            for flip in (False, True)
            if torch.equal(
                made,
                (lambda w, f: w.flip(2) if f else w)(
                    padded[:, down : down + height, right : right + width], flip
                ),
            )
        ]
        assert matches
        seen.add(matches[0])
    assert len(seen) > 15 or shape[0] < 40


def test_a_seed_means_the_same_images_and_shifts_are_uniform() -> None:
    x = torch.arange(9.0).expand(20_000, 1, 1, 9).contiguous() + 1
    first, second = (crop_and_flip(x, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, second)
    middle = first[:, 0, :, 4]  # of the one row, shifted away in 8 of 9 images
    assert abs(float((middle != 0).float().mean()) - 1 / 9) < 0.01
    kept = first[:, 0, 0][first[:, 0, 0].any(dim=1)]
    rising = (kept.diff(dim=1)[:, 3:5] == 1).any(dim=1).float().mean()
    assert abs(float(rising) - 0.5) < 0.05


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="images"):
        crop_and_flip(torch.zeros(3, 4), torch.Generator())
