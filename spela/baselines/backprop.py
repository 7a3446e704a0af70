"""Backpropagation on the same shapes: hidden layers as given, a linear output layer, cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spela.layers.steps import check_step, learning, step_on
from spela_kernels.contracts import check_labels, check_target

__all__ = ["BackpropSequential"]


class BackpropSequential(nn.Sequential):
    """nn.Sequential trained end to end by cross-entropy, with the training loop's method names.

    Args:
        *modules: As nn.Sequential; the last one's output is the logits (B, C).

    Example:
        >>> net = BackpropSequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> net.local_step(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]), optimizer).shape
        torch.Size([1])
    """

    def layer_scores(self, x: Tensor) -> list[Tensor]:
        """The logits: only the last layer of a backprop network answers."""
        return [self(x)]

    def predict(self, x: Tensor) -> Tensor:
        """Labels (B,)."""
        with torch.no_grad():
            return self(x).argmax(dim=1)

    @learning
    def local_step(self, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """One step of backprop: loss (1,) from before the update.

        Raises:
            ValueError: If there are not as many labels as samples, at least one, a label is of no class, or
                the optimizer does not hold a parameter that is to learn.
            TypeError: If labels are not int64, or it is no optimizer.
        """
        check_target(x, target)
        check_step([self], optimizer)
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        last = self[-1] if len(self) else None
        if isinstance(last, nn.Linear):  # before a norm on the way takes note of the batch
            check_labels(target, last.out_features)
        with torch.enable_grad():
            logits = self(x)
            if not isinstance(last, nn.Linear):
                check_labels(target, logits.shape[1])
            loss = nn.functional.cross_entropy(logits, target)
        if not trained:
            return loss.detach().reshape(1)
        found = torch.autograd.grad(loss, trained, allow_unused=True)
        step_on(optimizer, ((p, g) for p, g in zip(trained, found, strict=True) if g is not None))
        return loss.detach().reshape(1)
