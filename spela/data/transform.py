"""Datasets changed before training: other image sizes, noise. Pixels stay uint8."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as images

from spela.data.dataset import Dataset

__all__ = ["add_noise", "resize_images"]

_CHUNK = 4096  # samples at a time: bounds the temporaries


def _mapped(dataset: Dataset, change) -> Dataset:  # type: ignore[no-untyped-def]
    train, test = (
        torch.cat([change(chunk) for chunk in x.split(_CHUNK)])
        for x in (dataset.train_x, dataset.test_x)
    )
    return replace(dataset, train_x=train, test_x=test)


def resize_images(dataset: Dataset, size: int) -> Dataset:
    """The dataset with all images at one size.

    Args:
        dataset: Samples (N, C, H, W).
        size: New height and width in pixels, at least 1.

    Returns:
        A new dataset; bilinear with antialiasing, in the dtype it had.

    Raises:
        ValueError: If the samples are no images or `size` is below 1.

    Example:
        >>> from spela.data import load_dataset
        >>> resize_images(load_dataset("digits"), 16).sample_shape
        (1, 16, 16)
    """
    if size < 1:
        raise ValueError(f"resize must be at least 1 pixel, got {size}")
    if len(dataset.sample_shape) != 3:
        raise ValueError(
            f"dataset {dataset.name!r} has samples of {dataset.sample_shape[0]} features, not images: "
            "leave resize out"
        )
    return _mapped(dataset, lambda x: images.resize_image(x, [size, size], antialias=True))


def add_noise(dataset: Dataset, deviation: float, seed: int) -> Dataset:
    """The dataset with Gaussian noise on every value of every sample, the same in each epoch.

    Args:
        dataset: uint8 pixels or float features.
        deviation: Standard deviation, with full scale of pixels as 1; noisy pixels are clipped to 0..255
            and rounded, features are not.
        seed: Of the noise.

    Returns:
        A new dataset.

    Example:
        >>> from spela.data import load_dataset
        >>> digits = load_dataset("digits")
        >>> noisy = add_noise(digits, 0.1, seed=0)
        >>> round(float((noisy.train_x - digits.train_x).std()), 2)
        0.1
    """
    generator = torch.Generator().manual_seed(seed)

    def noisy(x: Tensor) -> Tensor:
        noise = deviation * torch.randn(x.shape, generator=generator)
        if x.dtype == torch.uint8:
            return x.add(255 * noise).round_().clamp_(0, 255).to(torch.uint8)
        return x + noise

    return _mapped(dataset, noisy)
