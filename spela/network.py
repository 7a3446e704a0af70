"""SpelaSequential: a stack of local layers that learns in one forward pass and can answer at each layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from spela.layers import LocalLayer

__all__ = ["SpelaSequential"]


class SpelaSequential(nn.Sequential):
    """nn.Sequential whose SPELA layers learn locally; any module may stand in between.

    Modules between the layers (Flatten, Dropout, RowNorm, a frozen backbone) only transform: nothing
    is propagated back, so parameters of theirs are never trained.

    Args:
        *modules: As nn.Sequential; the last must be a SPELA layer for the network to classify.

    Shape:
        Input: what the first module takes. Output: scores (B, C) of the last layer.

    Source: TMLR 2025, Algorithm 1.

    Example:
        >>> from spela.layers import SpelaLinear
        >>> net = SpelaSequential(SpelaLinear(4, 16, 3), SpelaLinear(16, 16, 3))
        >>> net(torch.randn(5, 4)).shape
        torch.Size([5, 3])
        >>> [tuple(s.shape) for s in net.layer_scores(torch.randn(5, 4))]
        [(5, 3), (5, 3)]
    """

    @property
    def local_layers(self) -> list[LocalLayer]:
        """The SPELA layers, in order."""
        return [module for module in self if isinstance(module, LocalLayer)]

    def _checked(self) -> Iterator[tuple[nn.Module, bool]]:
        modules = list(self)
        if not modules or not isinstance(modules[-1], LocalLayer):
            last = type(modules[-1]).__name__ if modules else "nothing"
            raise ValueError(
                f"the last module must be a SPELA layer, got {last}: nothing would use it"
            )
        for module in modules:
            yield module, isinstance(module, LocalLayer)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, C) of the last layer: an ordinary classifier's logits, in [-1, 1]."""
        for module, _ in self._checked():
            x = module(x)
        return self.local_layers[-1].scores(x)

    def layer_scores(self, x: Tensor) -> list[Tensor]:
        """Scores (B, C) of every SPELA layer, first to last.

        Args:
            x: A batch of inputs.

        Returns:
            One (B, C) tensor of cosines a SPELA layer.
        """
        scores = []
        for module, is_local in self._checked():
            x = module(x)
            if is_local:
                scores.append(module.scores(x))  # type: ignore[operator]
        return scores

    def local_losses(self, x: Tensor, target: Tensor) -> Tensor:
        """Local losses (L,); `.sum().backward()` trains all layers under any torch optimizer.

        Args:
            x: A batch of inputs.
            target: (B,) int64 labels.

        Returns:
            (L,) one loss a SPELA layer, each differentiable in that layer's parameters only.

        Raises:
            ValueError: On a shape, device or label that does not fit.
        """
        losses = []
        for module, is_local in self._checked():
            if is_local:
                loss, x = module.local_loss(x, target)  # type: ignore[operator]
                losses.append(loss)
            else:
                with torch.no_grad():
                    # The gradient of the layer before needs its output as it was.
                    x = module(x.clone() if getattr(module, "inplace", False) else x)
        return torch.stack(losses)

    @torch.no_grad()
    def local_step(self, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """One training step: each layer is updated right after its own forward.

        Args:
            x: A batch of inputs.
            target: (B,) int64 labels.
            optimizer: `LocalSGD` or `LocalAdam` (fused), or any torch optimizer of net.parameters().

        Returns:
            (L,) losses from before the updates, on the network's device.

        Raises:
            ValueError: On a shape, device or label that does not fit.

        Example:
            >>> from spela.layers import SpelaLinear
            >>> from spela.optim import LocalSGD
            >>> net = SpelaSequential(SpelaLinear(4, 16, 3))
            >>> optimizer = LocalSGD(net.parameters(), lr=0.1)
            >>> net.local_step(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]), optimizer).shape
            torch.Size([1])
        """
        losses = []
        for module, is_local in self._checked():
            if is_local:
                loss, x = module.local_step(x, target, optimizer)  # type: ignore[operator]
                losses.append(loss)
            else:
                x = module(x)
        return torch.stack(losses)

    @torch.no_grad()
    def predict(self, x: Tensor, exit_threshold: float | None = None) -> Tensor:
        """Labels (B,) by the last layer, or by the first layer that is sure enough.

        Args:
            x: A batch of inputs.
            exit_threshold: Margin in cosine between the best and the second class from which a
                sample is answered at once and leaves the batch; None: always the last layer.

        Returns:
            (B,) int64 labels.

        Example:
            >>> from spela.layers import SpelaLinear
            >>> net = SpelaSequential(SpelaLinear(4, 16, 3), SpelaLinear(16, 16, 3))
            >>> x = torch.randn(5, 4)
            >>> bool((net.predict(x) == net(x).argmax(1)).all())
            True
        """
        if exit_threshold is None:
            return self(x).argmax(dim=1)
        labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
        waiting = torch.arange(len(x), device=x.device)
        modules = list(self._checked())
        for index, (module, is_local) in enumerate(modules):
            x = module(x)
            if not is_local:
                continue
            scores: Tensor = module.scores(x)  # type: ignore[operator]
            if index == len(modules) - 1:
                labels[waiting] = scores.argmax(dim=1)
                break
            best = scores.topk(min(2, scores.shape[1]), dim=1)
            margin = best.values[:, 0] - best.values[:, -1]
            done = margin >= exit_threshold
            labels[waiting[done]] = best.indices[done, 0]
            waiting, x = waiting[~done], x[~done]
            if len(waiting) == 0:
                break
        return labels
