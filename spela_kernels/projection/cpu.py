"""The grouped projection on the CPU: the reference's rows, and from there on a few kernels at a time.

The projection has by far the most bytes. Taking it in parts that the cache holds, each through both products
with its gradient rows and through its update, fetches it from memory once instead of three times, and its
gradient never. Axes: B batch, K kernels, D pooled map size, d symmetric dimension, G groups, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spela_kernels.contracts import Settings
from spela_kernels.fused_rules import fused_adam_update_
from spela_kernels.precision import without_autocast
from spela_kernels.projection.reference import backward, backward_rows, forward, scores
from spela_kernels.rules import AdamRule, SgdRule, sgd_update_

__all__ = ["adam_step_", "backward", "forward", "scores", "sgd_step_"]

# Of the projection: with its gradient and two moments four times as much, which last-level caches hold.
_PART_BYTES = 3 * 2**20


@without_autocast
def _step(
    z: Tensor,
    projection: Tensor,
    vectors: Tensor,
    groups: Tensor,
    target: Tensor,
    settings: Settings,
    update: Callable[[slice, Tensor], None],
) -> tuple[Tensor, Tensor]:
    """Loss () and dz (B, K, D); `update` is given kernels and the gradient of their projections."""
    saved = forward(z, projection, vectors, groups, target, settings)
    dp = backward_rows(z, vectors, groups, target, settings, saved)  # (B, K, d)
    dz = z.new_empty(z.shape)
    kernels = max(1, _PART_BYTES // (projection[0].numel() * projection.element_size()))
    for first in range(0, len(projection), kernels):
        part = slice(first, first + kernels)
        rows = dp[:, part].transpose(0, 1)
        dz[:, part] = torch.bmm(rows, projection[part].to(z.dtype).mT).transpose(0, 1)
        gradient = torch.bmm(z[:, part].permute(1, 2, 0), rows)  # (part, D, d)
        update(part, gradient.to(projection.dtype))
    return saved.loss, dz


def sgd_step_(
    z: Tensor,
    projection: Tensor,
    vectors: Tensor,
    groups: Tensor,
    target: Tensor,
    settings: Settings,
    momentum_buffer: Tensor | None,
    lr: Tensor,
    rule: SgdRule,
) -> tuple[Tensor, Tensor]:
    """Loss and dz (B, K, D) from before torch.optim.SGD's update (dampening 0) of the projection."""

    def update(part: slice, gradient: Tensor) -> None:
        buffer = None if momentum_buffer is None else momentum_buffer[part]
        sgd_update_(projection[part], gradient, buffer, lr, rule)

    return _step(z, projection, vectors, groups, target, settings, update)


def adam_step_(
    z: Tensor,
    projection: Tensor,
    vectors: Tensor,
    groups: Tensor,
    target: Tensor,
    settings: Settings,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: Tensor,
    rule: AdamRule,
) -> tuple[Tensor, Tensor]:
    """Loss and dz (B, K, D) from before torch.optim.Adam's update; `step` counts from 1."""

    def update(part: slice, gradient: Tensor) -> None:
        moments = exp_avg[part], exp_avg_sq[part]
        fused_adam_update_(projection[part], gradient, *moments, step, lr, rule)

    return _step(z, projection, vectors, groups, target, settings, update)
