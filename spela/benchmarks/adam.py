"""Adam as the rivals of a fused step have it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

__all__ = ["capturable_adam"]


def capturable_adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Adam:
    """torch's fused Adam; on a GPU one whose step a graph can capture, as ours is.

    Args:
        parameters: On one device.
        lr: Learning rate.

    Example:
        >>> capturable_adam(nn.Linear(2, 2).parameters(), 1e-3).defaults["capturable"]
        False
    """
    held = list(parameters)
    return torch.optim.Adam(held, lr=lr, fused=True, capturable=held[0].is_cuda)
