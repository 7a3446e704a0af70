"""Sizes of the maps a convolution makes, known before it runs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

__all__ = ["convolved_size"]


def convolved_size(conv: nn.Conv2d, size: Sequence[int]) -> tuple[int, int]:
    """Height and width of `conv`'s output.

    Args:
        conv: Any 2-d convolution.
        size: (H, W) of its input, in pixels.

    Returns:
        (H', W').

    Raises:
        ValueError: If the kernel spans more pixels than the padded input has.

    Source: the shape formula of torch.nn.Conv2d.

    Example:
        >>> convolved_size(nn.Conv2d(3, 8, 5, stride=2, padding=1), (32, 28))
        (15, 13)
    """
    sizes = []
    for axis, pixels in enumerate(size):
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
        if isinstance(conv.padding, str):
            padded = pixels + (reach - 1 if conv.padding == "same" else 0)
        else:
            padded = pixels + 2 * int(conv.padding[axis])
        if padded < reach:
            raise ValueError(
                f"{size[0]} x {size[1]} images: {padded} padded pixels are fewer than the {reach} "
                "that the kernel spans; enlarge the images or pad them"
            )
        sizes.append((padded - reach) // conv.stride[axis] + 1)
    return sizes[0], sizes[1]
