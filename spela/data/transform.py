"""Datasets changed before training: another split, image sizes, noise. Pixels stay uint8."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from spela.data.dataset import Dataset

__all__ = ["add_label_noise", "add_noise", "resize_images", "split_anew"]

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
    from torchvision.transforms.v2 import functional  # here because it takes a second to import

    return _mapped(dataset, lambda x: functional.resize_image(x, [size, size], antialias=True))


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
        drawn = torch.randn(x.shape, generator=generator, dtype=torch.float32, device="cpu")
        noise = (deviation * drawn).to(x.device)
        if x.dtype == torch.uint8:
            return x.add(255 * noise).round_().clamp_(0, 255).to(torch.uint8)
        return x + noise

    return _mapped(dataset, noisy)


def add_label_noise(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The dataset with wrong training labels; the test labels stay true.

    Args:
        dataset: Any dataset.
        share: Share of the training labels, rounded to whole samples, that become another class, each
            of the C - 1 others equally likely; in [0, 1).
        seed: Of which labels change, and to what.

    Returns:
        A new dataset.

    Raises:
        ValueError: If `share` is out of range.

    Example:
        >>> from spela.data import load_dataset
        >>> digits = load_dataset("digits")
        >>> wrong = add_label_noise(digits, 0.2, seed=0).train_y != digits.train_y
        >>> round(float(wrong.double().mean()), 2)
        0.2
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must be in [0, 1), got {share}")
    generator = torch.Generator().manual_seed(seed)
    labels = dataset.train_y
    count = round(share * len(labels))
    chosen = torch.randperm(len(labels), generator=generator, device="cpu")[:count].to(
        labels.device
    )
    steps = torch.randint(1, dataset.num_classes, (count,), generator=generator, device="cpu").to(
        labels.device
    )
    noisy = labels.clone()
    noisy[chosen] = (labels[chosen] + steps) % dataset.num_classes
    return replace(dataset, train_y=noisy)


def split_anew(dataset: Dataset, test_share: float, seed: int) -> Dataset:
    """Training and test samples pooled, shuffled and split again: the few-shot tables' data.

    Args:
        dataset: Any dataset.
        test_share: Share of all samples that becomes the test split, in (0, 1); 0.99 of Fashion-MNIST
            leaves 700 samples to learn from.
        seed: Of the order.

    Returns:
        A new dataset; both splits have at least one sample.

    Raises:
        ValueError: If `test_share` is out of range.

    Source: the authors' few-shot and transfer experiments: a test share of training and test merged.

    Example:
        >>> from spela.data import load_dataset
        >>> len(split_anew(load_dataset("digits"), 0.9, seed=0).train_y)
        180
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must be between 0 and 1, got {test_share}")
    x = torch.cat([dataset.train_x, dataset.test_x])
    y = torch.cat([dataset.train_y, dataset.test_y])
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator, device="cpu").to(y.device)
    count = min(max(round(test_share * len(y)), 1), len(y) - 1)
    train, test = order[count:], order[:count]
    return replace(dataset, train_x=x[train], train_y=y[train], test_x=x[test], test_y=y[test])
