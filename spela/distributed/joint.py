"""Modules whose result depends on the whole batch, for processes that each hold a part of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spela.distributed.ranks import Ranks, Share
from spela.layers.in_training import batch_norms, drawing_parts
from spela.layers.running import keep_statistics
from spela.layers.similarity import Similarity
from spela_kernels.cosines import widened

__all__ = ["JointBatchNorm2d", "JointDropout", "join_modules"]


class JointDropout(nn.Dropout):
    """Dropout whose mask is drawn for the joint batch on every process, which keeps its own rows.

    All processes' generators then stay in step, and a sample is dropped as in one process, however
    many share the batch.
    """

    share: Share | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Mask and rescale x (rows of this process)."""
        if not self.training or self.share is None:
            return super().forward(x)
        joint = x.new_ones((self.share.total, *x.shape[1:]))
        return x * nn.functional.dropout(joint, self.p)[self.share.rows]


class _Stack(torch.autograd.Function):
    """Every process's tensor, stacked; backward sums the gradients of all processes' losses for one's own."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, tensor: Tensor) -> Tensor:
        ctx.ranks = ranks
        return ranks.stack(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        total = ctx.ranks.sum(gradients[0].contiguous())
        return None, total[ctx.ranks.rank]


class JointBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the joint batch's mean and variance, on the CPU too; else as nn.BatchNorm2d.

    Variances are combined from each part's own, so that nothing cancels. Source: Chan, Golub, LeVeque,
    "Algorithms for computing the sample variance", 1983, for the rule; the biased variance normalises
    and the unbiased one is remembered, as in torch.
    """

    ranks: Ranks
    share: Share | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (rows of this process, K, H, W)."""
        own = not self.training and self.running_mean is not None
        if own or self.share is None:
            return super().forward(x)
        share, axes = self.share, (0, 2, 3)
        count = share.total * x[0, 0].numel()
        if self.training and count == 1:
            raise ValueError(
                "batch norm has one value a channel here: train on batches of more than one sample"
            )
        wide = widened(x)  # as torch's: of maps in 16 bits, moments in 16 bits would say too little
        own_mean, own_variance = wide.mean(axes), wide.var(axes, correction=0)
        weight = torch.full_like(own_mean, share.weight)
        parts = _Stack.apply(self.ranks, torch.stack([own_mean, own_variance, weight]))
        means, variances, weights = parts.unbind(1)  # (ranks, K) each
        mean = (weights * means).sum(0)
        variance = (weights * (variances + (means - mean).square())).sum(0)
        if self.training:
            keep_statistics(self, mean.detach(), variance.detach(), count)
        scale = (variance + self.eps).rsqrt() * (1 if self.weight is None else self.weight)
        shift = (0 if self.bias is None else self.bias) - mean * scale
        return torch.addcmul(shift[:, None, None], wide, scale[:, None, None]).to(x.dtype)


def _sees_its_share_alone(net: nn.Module) -> str:
    """The name of a module that would compute something else on a part of a batch; empty: there is none."""
    if any(isinstance(module, Similarity) for module in net.modules()):
        return "a similarity loss"
    joint = (nn.BatchNorm2d, nn.Dropout, JointBatchNorm2d, JointDropout)
    kinds = (type(module) for module in (*batch_norms(net), *drawing_parts(net)))
    return next((kind.__name__ for kind in kinds if kind not in joint), "")


def join_modules(net: nn.Module, ranks: Ranks) -> list[JointDropout | JointBatchNorm2d]:
    """Turn a network's dropouts and batch norms into joint ones; names and tensors stay.

    Args:
        net: Changed in place.
        ranks: The processes that share a batch.

    Returns:
        The joint modules, whose `share` must be set before a batch.

    Raises:
        ValueError: If a module's result depends on the whole batch and it has no joint form.

    Example:
        >>> net = nn.Sequential(nn.Dropout(0.2))
        >>> join_modules(net, Ranks(0, 1, torch.device("cpu"), 60.0))
        [JointDropout(p=0.2, inplace=False)]
    """
    alone = _sees_its_share_alone(net)
    if alone and ranks.size > 1:
        raise ValueError(
            f"{alone} would see each process's part of a batch alone: train without it"
        )
    joint: list[JointDropout | JointBatchNorm2d] = []
    for module in net.modules():
        if type(module) is nn.Dropout:
            module.__class__ = JointDropout
            joint.append(module)  # type: ignore[arg-type]
        elif type(module) is nn.BatchNorm2d:
            module.__class__ = JointBatchNorm2d
            module.ranks = ranks  # type: ignore[assignment]
            joint.append(module)  # type: ignore[arg-type]
    return joint
