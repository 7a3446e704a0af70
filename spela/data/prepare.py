"""From a stored batch to the network's input: the one place where pixels become floats."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["prepare"]


def prepare(x: Tensor) -> Tensor:
    """Turn a raw batch into the float32 input of a network, on the batch's device.

    Args:
        x: any shape; uint8 pixels 0..255 are divided by 255, floats keep their values.

    Returns:
        The same shape, float32; `x` itself where it is float32 already.

    Raises:
        TypeError: another dtype.

    Example:
        >>> prepare(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([0.0000, 0.2000, 1.0000])
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}: use torch.as_tensor(x)")
    if x.dtype == torch.uint8:
        return x.to(torch.float32).div_(255.0)
    if not x.is_floating_point():
        raise TypeError(
            f"x must be uint8 pixels or floating-point features, got {x.dtype}; "
            "convert it with .to(torch.uint8) or .to(torch.float32)"
        )
    return x.to(torch.float32)
