"""Data-parallel SPELA: every process holds the network and a part of each batch.

A layer's gradient needs nothing from the layers behind it, so it is summed over the processes while the
next layers run; a layer is updated once its sum is there. The result is that of one process on the joint
batch, up to the rounding of sums in another order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spela.distributed.joint import join_modules
from spela.distributed.ranks import Pending, Ranks, Share
from spela.distributed.wrapped import refuse_hooks
from spela.layers import LocalLayer
from spela.layers.hooks import hooked_input
from spela.layers.modes import output_of
from spela.layers.plain import parts_of
from spela.layers.steps import apart, check_step, learning, step_on
from spela.network import SpelaSequential
from spela_kernels.contracts import check_labels, check_target

__all__ = ["DataParallelSequential"]


class _Sum(NamedTuple):
    """One parameter's gradient, being summed over the processes."""

    parameter: nn.Parameter
    gradient: Pending


class DataParallelSequential(SpelaSequential):
    """A SpelaSequential whose steps on a joint batch are shared among the processes.

    Every process is given the same joint batch and works on its own rows. Dropout draws the joint
    batch's mask, batch norm uses the joint batch's statistics. (Torch's dropout draws in the order of memory,
    which on a convolution layer's maps is another one in one process under `LocalSGD` and `LocalAdam`: the
    mask there is another draw.) State dict and names are those of the network it was made from.

    Args:
        net: The network, on the process's device; its modules are taken over. Rank 0's weights, buffers
            and class vectors become everyone's.
        ranks: The processes of the job.

    Shape:
        As SpelaSequential, for joint batches.

    Raises:
        ValueError: If a module's result depends on the whole batch and it has no joint form, or the network
            has hooks of its own, which this one would not have.

    Source: gradients are averaged as in Li et al., "PyTorch Distributed", VLDB 2020, with weights for
    parts of unequal size; the overlap is with the following layers' forward instead of a backward.

    Example:
        >>> from spela.layers import SpelaLinear
        >>> alone = Ranks(0, 1, torch.device("cpu"), 60.0)
        >>> DataParallelSequential(SpelaSequential(SpelaLinear(4, 16, 3)), alone).ranks.size
        1
    """

    def __init__(self, net: SpelaSequential, ranks: Ranks) -> None:
        super().__init__(OrderedDict(parts_of(net)))
        refuse_hooks(net)
        self.ranks = ranks
        self._joint = tuple(join_modules(self, ranks))
        if ranks.size > 1:
            ranks.copy_from_main(self.state_dict().values())

    @contextmanager
    def _shared(self, x: Tensor) -> Iterator[Share]:
        """This process's share of a joint batch, known to the joint modules while it is worked on."""
        share = self.ranks.share(len(x))
        for module in self._joint:
            module.share = share
        try:
            yield share
        finally:
            for module in self._joint:
                module.share = None

    @learning
    def local_step(self, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """One step of all processes on a joint batch.

        Args:
            x: The joint batch, the same on every process.
            target: (B,) its int64 labels.
            optimizer: Any torch optimizer of the network's parameters.

        Returns:
            (L,) this process's part of the losses: the sum over the processes is the joint batch's.

        Raises:
            ValueError: On a shape, device or label that does not fit.
            LostRankError: If another process is gone.
        """
        modules, losses, sums = list(self._checked()), [], []
        check_step(self.local_layers, optimizer)
        x = hooked_input(self, x)
        # Of the joint batch: a process that alone found a wrong label would leave the others waiting.
        check_target(x, target)
        check_labels(target, self.local_layers[-1].num_classes)
        with self._shared(x) as share:
            x, target = x[share.rows], target[share.rows]
            for module, is_local in modules:
                if is_local:
                    loss, x, started = self._start(module, x, target, share)  # type: ignore[arg-type]
                    losses.append(loss)
                    sums.append(started)
                else:
                    x = output_of(module, x)
        for started in sums:
            if started:
                step_on(optimizer, [(part.parameter, part.gradient.wait()) for part in started])
        return torch.stack(losses)

    def _chained(self, *_: Any) -> None:
        """No steps in one call: each is shared."""

    def _start(
        self, layer: LocalLayer, x: Tensor, target: Tensor, share: Share
    ) -> tuple[Tensor, Tensor, list[_Sum]]:
        """A layer's weighted loss and output; the sums of its gradients begin."""
        parameters = [p for p in layer.parameters() if p.requires_grad]
        with torch.enable_grad():
            loss, y = layer.local_loss(x, target)
            loss = loss * share.weight
        if not parameters:
            return loss.detach(), y, []
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        # None where the loss does not use it, on no process.
        given = ((p, g) for p, g in zip(parameters, found, strict=True) if g is not None)
        # All before the first sum, which is in place; in the parameter's own strides, which torch's fused
        # optimizers walk side by side.
        sums = []
        for parameter, gradient in list(apart(given)):
            if gradient.stride() != parameter.stride():
                gradient = torch.empty_like(parameter).copy_(gradient)
            sums.append(_Sum(parameter, self.ranks.start_sum(gradient)))
        return loss.detach(), y, sums

    def layer_scores(self, x: Tensor) -> list[Tensor]:
        """Scores (B, C) of every SPELA layer for a joint batch, the same on every process."""
        x = hooked_input(self, x)
        with self._shared(x) as share:
            own = self._scores_of(x[share.rows])
        if share.whole:
            return own
        joint = own[0].new_zeros((len(own), len(x), own[0].shape[1]))
        joint[:, share.rows] = torch.stack(own)
        return list(self.ranks.sum(joint))
