"""Mono-Forward: every layer learns by the cross-entropy of its own trainable projection to the classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from spela.baselines.hidden import Gradients, HiddenLayer, RivalSequential, layer_sweep

__all__ = ["MonoForwardLayer", "MonoForwardSequential"]


class MonoForwardLayer(HiddenLayer):
    """a = phi(x W^T + b) with goodness g = a M^T, one value a class, trained by cross-entropy(g).

    Args:
        in_features: I.
        out_features: O.
        num_classes: C.
        generator: Source of the initial weights and projection; None: torch's default one.
        **settings: As `HiddenLayer`.

    Shape:
        (B, I) -> (B, O).

    Source: Gong, Li and Abdulla 2025, arXiv 2501.09238: G_i = a_i M_i^T.

    Example:
        >>> layer = MonoForwardLayer(4, 8, 3)
        >>> layer.scores(layer(torch.randn(5, 4))).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_classes: int,
        *,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(in_features, out_features, generator=generator, **settings)
        self.projection = nn.Parameter(self.weight.new_empty(num_classes, out_features))
        self._initialise_projection(generator)

    @torch.no_grad()
    def _initialise_projection(self, generator: torch.Generator | None) -> None:
        bound = 1 / math.sqrt(self.out_features)
        self.projection.uniform_(-bound, bound, generator=generator)

    def reset_parameters(self) -> None:
        """Draw the parameters anew from torch's default generator, as the constructor does."""
        super().reset_parameters()
        if "projection" in self._parameters:  # nn.Linear calls this before there is one
            self._initialise_projection(None)

    def scores(self, y: Tensor) -> Tensor:
        """Goodness (B, C) of outputs (B, O)."""
        return y @ self.projection.T

    def local_gradients(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Gradients]:
        """Local loss (), output (B, O) and the gradients of weight, bias and projection, by hand."""
        y = self(x)
        scores = self.scores(y)
        loss = nn.functional.cross_entropy(scores, target)
        # d loss / d scores = (softmax - onehot) / B
        error = scores.softmax(dim=1)
        error[torch.arange(len(target), device=target.device), target] -= 1
        error /= len(target)
        found = [(self.projection, error.T @ y)]
        return loss, y, found + self.gradients(x, y, error @ self.projection)


class MonoForwardSequential(RivalSequential):
    """A stack of `MonoForwardLayer`, each trained locally in one sweep; any module may stand between.

    The last layer answers, as the publication's default; the mean of all layers' scores, its other way
    to predict, is what evaluation calls the vote.

    What differs from the publication: modules between the layers (normalisation, dropout) are allowed;
    projections start as torch's linear layers do (how the publication's do is not known).

    Args:
        *modules: As nn.Sequential; the last must be a `MonoForwardLayer`.

    Raises:
        ValueError: If the last module is another one.

    Source: Gong, Li and Abdulla 2025, arXiv 2501.09238.

    Example:
        >>> net = MonoForwardSequential(MonoForwardLayer(4, 8, 3), MonoForwardLayer(8, 8, 3))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> net.local_step(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]), optimizer).shape
        torch.Size([2])
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        if not modules or not isinstance(modules[-1], MonoForwardLayer):
            raise ValueError("the last module must be a MonoForwardLayer: it gives the answer")
        self.num_classes = len(modules[-1].projection)

    def layer_scores(self, x: Tensor) -> list[Tensor]:
        """Goodness (B, C) of every layer, first to last."""
        scores = []
        for module in self:
            x = module(x)
            if isinstance(module, MonoForwardLayer):
                scores.append(module.scores(x))
        return scores

    def forward(self, x: Tensor) -> Tensor:
        """Goodness (B, C) of the last layer."""
        return self.layer_scores(x)[-1]

    @torch.no_grad()
    def local_gradients(self, x: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Gradients]]:
        """Loss () and gradients, layer by layer; the next layer's input is from before any update."""
        yield from layer_sweep(self, MonoForwardLayer, x, target)
