"""Deep supervision: the same blocks and heads as SPELA's, all trained by one gradient from end to end."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from spela.layers import SpelaBlock
from spela.layers.hooks import call_with_hooks, hooked_input
from spela.layers.steps import check_step, learning, step_on
from spela.network import SpelaSequential

__all__ = ["DeeplySupervisedSequential"]


class DeeplySupervisedSequential(SpelaSequential):
    """`SpelaSequential` of blocks whose losses are summed, and their gradient goes through the whole network.

    So its memory is backprop's, and every block's head has its say in all blocks before it.

    Args:
        *blocks: `SpelaBlock`s.

    Raises:
        ValueError: If there is none, or another module.

    Source: Lee et al. 2015 (arXiv 1409.5185), with SPELA's heads.

    Example:
        >>> blocks = [SpelaBlock(torch.nn.Linear(4, 4), 3, torch.randn(2, 4)) for _ in range(2)]
        >>> net = DeeplySupervisedSequential(*blocks)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> net.local_step(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]), optimizer).shape
        torch.Size([2])
    """

    def __init__(self, *blocks: SpelaBlock) -> None:
        super().__init__(*blocks)
        if not blocks or not all(isinstance(block, SpelaBlock) for block in blocks):
            raise ValueError("deep supervision is of SpelaBlocks alone, at least one")

    @property
    def _blocks(self) -> list[SpelaBlock]:
        return list(self)  # type: ignore[arg-type]

    def local_losses(self, x: Tensor, target: Tensor) -> Tensor:
        """Losses (L,) of the heads, each differentiable in its block's parameters and those before it."""
        losses: list[Tensor] = []
        for block in self._blocks:
            block.check_batch(x, target)
        x = hooked_input(self, x)
        for block in self._blocks:
            loss, x = call_with_hooks(block, x, partial(block.joint_loss, target=target))
            losses.append(loss)
        return torch.stack(losses)

    @learning
    def local_step(self, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """One step of all blocks at once: losses (L,) from before the update."""
        check_step(self.local_layers, optimizer)
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        with torch.enable_grad():
            losses = self.local_losses(x, target)
            total = losses.sum()
        if not trained:
            return losses.detach()
        found = torch.autograd.grad(total, trained, allow_unused=True)
        step_on(optimizer, ((p, g) for p, g in zip(trained, found, strict=True) if g is not None))
        return losses.detach()
