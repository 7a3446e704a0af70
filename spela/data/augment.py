"""Random crops and flips of a batch of images, on its own device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["crop_and_flip"]


def crop_and_flip(x: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Each image shifted by up to `padding` pixels, zeros from outside, and half of them mirrored.

    Args:
        x: (B, C, H, W) of any dtype.
        generator: On the CPU, so that a seed means the same images on every device.
        padding: Most pixels of a shift, up and down and to both sides.

    Returns:
        Such a batch; `x` stays as it is.

    Raises:
        ValueError: If x is no batch of images.

    Source: the usual recipe for CIFAR (crop with padding 4 and flip).

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0, 3.0]]]])
        >>> crop_and_flip(x, torch.Generator().manual_seed(0), padding=0)
        tensor([[[[3., 2., 1.]]]])
    """
    if x.dim() != 4:
        raise ValueError(f"images (B, C, H, W) can be cropped and flipped, got {tuple(x.shape)}")
    count, _, height, width = x.shape
    draws = torch.randint(2 * padding + 1, (2, count), generator=generator, device="cpu")
    flips = torch.randint(2, (count,), generator=generator, device="cpu").bool()
    down, right, flips = draws[0].to(x.device), draws[1].to(x.device), flips.to(x.device)
    rows = torch.arange(height, device=x.device) + down[:, None]  # (B, H) in the padded image
    columns = torch.arange(width, device=x.device).expand(count, width)
    columns = torch.where(flips[:, None], width - 1 - columns, columns) + right[:, None]  # (B, W)
    padded = torch.nn.functional.pad(x, (padding,) * 4)
    picked = padded.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, padded.shape[3]))
    return picked.gather(3, columns[:, None, None, :].expand(-1, x.shape[1], height, -1))
