"""Blocks with plain linear heads: what local learning uses where class vectors are not fixed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spela.layers import SpelaBlock
from spela.layers.steps import learning, step_by_gradient
from spela_kernels.cosines import widened

__all__ = ["LinearHeadBlock"]


class LinearHeadBlock(SpelaBlock):
    """A block whose head is a linear classifier, trained by cross-entropy of its logits.

    With a similarity loss of weight 0.99 it is Nøkland and Eidnes' predsim; without one it is a
    Mono-Forward-style block, whose projection goes to the classes. Behind the layers that SPELA's heads have
    (`channels`, `hidden`) it tells what the class vectors bring: all else is the same.

    What differs from the publications: the readout is an average down to at most `readout` numbers in both,
    where Mono-Forward projects the whole map; the heads have no bias.

    Args:
        body: As of `SpelaBlock`.
        num_classes: C.
        sample_input: As of `SpelaBlock`.
        readout: Most numbers that are read out of maps.
        channels, hidden: Of the head, as of `SpelaBlock`; 0: none, as in the publications.
        similarity: Weight of the similarity loss, in [0, 1).
        dropout: Share of what is read out that training leaves out.
        generator: Source of the similarity loss's weights; the classifier starts at zero.

    Source: Nøkland and Eidnes 2019, arXiv 1901.06656; Gong, Li and Abdulla 2025, arXiv 2501.09238.

    Example:
        >>> block = LinearHeadBlock(nn.Linear(4, 8), 3, torch.randn(2, 4))
        >>> loss, y = block.local_loss(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
        >>> round(loss.item(), 4), block.scores(y).shape
        (1.0986, torch.Size([5, 3]))
    """

    projection: nn.Parameter
    scores_are_cosines = False

    def __init__(
        self,
        body: nn.Module,
        num_classes: int,
        sample_input: Tensor,
        *,
        readout: int = 2048,
        channels: int = 0,
        hidden: int = 0,
        similarity: float = 0.0,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            body,
            num_classes,
            sample_input,
            readout=readout,
            channels=channels,
            hidden=hidden,
            projection=num_classes,
            similarity=similarity,
            dropout=dropout,
            generator=generator,
        )

    @torch.no_grad()
    def _initialise_head(self, generator: torch.Generator | None) -> None:
        super()._initialise_head(generator)
        self.projection.zero_()

    @torch.no_grad()
    def scores(self, y: Tensor) -> Tensor:
        """Logits (B, C) of outputs y."""
        rows, projection, _, _ = self.head_input(y)
        return widened(rows[:, 0] @ projection[0])

    def cross_entropy(self, y: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy () of the logits of outputs y, differentiable."""
        return self._head_loss(self.head(y), target)

    def _head_loss(self, rows: Tensor, target: Tensor) -> Tensor:
        logits = rows.to(self.projection.dtype) @ self.projection[0]
        return nn.functional.cross_entropy(widened(logits), target)

    @learning
    def local_step(
        self, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, Tensor]:
        """Forward and update in place, as `SpelaBlock`'s; without a fused op."""
        return step_by_gradient(self, x, target, optimizer)
