"""What a batch norm keeps of the batches it has seen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["keep_statistics"]


@torch.no_grad()
def keep_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Move the running statistics on as torch does in training; a norm that keeps none is left alone.

    Args:
        norm: The batch norm, of K channels.
        mean: (K,) of a batch.
        variance: (K,) of it, biased; the unbiased one is kept.
        count: Values a channel, at least 2.

    Example:
        >>> norm = nn.BatchNorm2d(1, momentum=0.5)
        >>> keep_statistics(norm, torch.tensor([4.0]), torch.tensor([1.0]), 2)
        >>> norm.running_mean, norm.running_var
        (tensor([2.]), tensor([1.5000]))
    """
    kept = norm.running_mean is not None and norm.running_var is not None
    if not (norm.track_running_stats and kept):
        return
    tracked, share = norm.num_batches_tracked, norm.momentum
    if tracked is not None:
        tracked.add_(1)
    if share is None:  # as torch: the mean of all batches, or no update where nobody counts them
        share = 0.0 if tracked is None else 1.0 / float(tracked)
    unbiased = variance * (count / (count - 1))
    for running, value in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        running.lerp_(value.to(running.dtype), share)  # type: ignore[union-attr]
