"""The grouped projection on the CPU: the reference's rows, and from there on a few kernels at a time.

The projection has by far the most bytes. Taking it in parts that the cache holds, each through both products
with its gradient rows and through its update, fetches it from memory once instead of three times, and its
gradient never. Axes: B batch, K kernels, D pooled map size, d symmetric dimension, G groups, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spela_kernels.precision import without_autocast
from spela_kernels.projection.reference import backward, backward_rows, forward, scores
from spela_kernels.projection.types import Call
from spela_kernels.rules import Step, fused_update_

__all__ = ["backward", "forward", "scores", "step_"]

# Of the projection: with its gradient and two moments four times as much, which last-level caches hold.
_PART_BYTES = 3 * 2**20


@without_autocast
def step_(call: Call, step: Step[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Forward, closed-form gradient, update in place: loss () and dz (B, K, D), both from before it."""
    z, projection = call.z, call.projection
    saved = forward(call)
    dp = backward_rows(call, saved)  # (B, K, d)
    dz = z.new_empty(z.shape)
    kernels = max(1, _PART_BYTES // (projection[0].numel() * projection.element_size()))
    for start in range(0, len(projection), kernels):
        part = slice(start, start + kernels)
        rows = dp[:, part].transpose(0, 1)
        dz[:, part] = torch.bmm(rows, projection[part].to(z.dtype).mT).transpose(0, 1)
        gradient = torch.bmm(z[:, part].permute(1, 2, 0), rows)  # (part, D, d)
        first, second = (None if t is None else t[part] for t in (step.first, step.second))
        fused_update_(
            projection[part],
            gradient.to(projection.dtype),
            step._replace(first=first, second=second),
        )
    return saved.loss, dz
