"""From images to a dataset of features: chosen samples, resized, normalised, through a backbone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spela.data import Dataset, PhotoSet, check_scale, prepare
from spela.features.backbones import Backbone

__all__ = ["Selection", "extract_features", "select_samples"]

MIN_SIZE = 32  # the backbones halve an image five times
_PARTS = ("train", "test")


@dataclass(frozen=True)
class Selection:
    """Which samples are taken.

    Attributes:
        train: Number of training samples; None: all.
        test: Number of test samples; None: all.
        seed: Of the choice, where not all are taken.
    """

    train: int | None = None
    test: int | None = None
    seed: int = 0


def select_samples(count: int, wanted: int | None, seed: int, where: str) -> Tensor:
    """Positions of the samples taken: all, or `wanted` drawn at random, in ascending order.

    Args:
        count: How many there are.
        wanted: How many to take; None: all.
        seed: Of the draw.
        where: What they are, for messages.

    Returns:
        int64, ascending.

    Raises:
        ValueError: If `wanted` is below 1 or above `count`.

    Example:
        >>> select_samples(5, 2, 0, "train samples")
        tensor([0, 4])
    """
    if wanted is None:
        return torch.arange(count, device="cpu")
    if not 1 <= wanted <= count:
        raise ValueError(f"{where} must be between 1 and {count}, got {wanted}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")
    return order[:wanted].sort().values


def _pixels(data: Dataset | PhotoSet, part: str, index: Tensor, size: int) -> Tensor:
    """(B, 3, size, size) float32 in 0..1."""
    if isinstance(data, PhotoSet):
        return prepare(data.pixels(part, index.tolist(), size))
    x = getattr(data, f"{part}_x")[index]
    if x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)  # grey: three equal channels
    from torchvision.transforms.v2 import functional  # here because it takes a second to import

    # In the dtype the pixels have: uint8 is rounded after resizing, as image libraries do.
    return prepare(functional.resize_image(x, [size, size], antialias=True))


def _checked(data: Dataset | PhotoSet, size: int) -> None:
    if size < MIN_SIZE:
        raise ValueError(f"size must be at least {MIN_SIZE} pixels, got {size}")
    if isinstance(data, Dataset) and (
        len(data.sample_shape) != 3 or data.sample_shape[0] not in (1, 3)
    ):
        raise ValueError(
            f"dataset {data.name!r} has samples of shape {data.sample_shape}; a backbone takes images "
            "(1, H, W) or (3, H, W)"
        )
    if isinstance(data, Dataset):
        for part in _PARTS:  # backbones learnt from pixels
            check_scale(getattr(data, f"{part}_x"), torch.uint8, f"dataset {data.name!r}: {part}_x")


@torch.no_grad()  # of tensors made in inference mode, autograd could not learn
def extract_features(
    data: Dataset | PhotoSet,
    backbone: Backbone,
    size: int,
    selection: Selection | None = None,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int, int], None] | None = None,
) -> Dataset:
    """A dataset whose samples are the backbone's pooled features.

    Images in memory are resized to size x size (bilinear, antialiased); photos in files lose what does
    not fit a square first, so they keep their proportions. No augmentation.

    Args:
        data: Images; floats are pixels of 0..1.
        backbone: From `load_backbone`, for the same size.
        size: Height and width the backbone sees, at least 32.
        selection: Which samples; None: all.
        batch_size: Images at a time.
        device: Where the backbone runs.
        on_batch: Told of images done and images in all, or None.

    Returns:
        float32 features (N, F), on the CPU, named "data-backbone-size".

    Raises:
        ValueError: If the samples are no images or floats beyond 0..1, the size or a number of samples does
            not fit, or a file cannot be read.
    """
    _checked(data, size)
    chosen = selection or Selection()
    index = {
        part: select_samples(
            len(getattr(data, f"{part}_y")),
            getattr(chosen, part),
            chosen.seed,
            f"dataset {data.name!r}: {part} samples",
        )
        for part in _PARTS
    }
    # This layout of the maps takes half the time on a CPU; the caller's network stays as it is.
    net = copy.deepcopy(backbone.net).to(device).to(memory_format=torch.channels_last).eval()
    mean = torch.tensor(backbone.mean, device=device).reshape(3, 1, 1)
    std = torch.tensor(backbone.std, device=device).reshape(3, 1, 1)
    done, total = 0, sum(len(part) for part in index.values())
    parts: dict[str, Tensor] = {}
    for part in _PARTS:
        rows = []
        for some in index[part].split(batch_size):
            x = (_pixels(data, part, some, size).to(device) - mean) / std
            rows.append(net(x.contiguous(memory_format=torch.channels_last)).float().cpu())
            done += len(some)
            if on_batch is not None:
                on_batch(done, total)
        parts[f"{part}_x"] = torch.cat(rows)
        parts[f"{part}_y"] = getattr(data, f"{part}_y")[index[part]].cpu()
    return Dataset(
        name=f"{data.name}-{backbone.name}-{size}",
        num_classes=len(data.class_names),
        class_names=data.class_names,
        source=data.source,
        **parts,
    )
