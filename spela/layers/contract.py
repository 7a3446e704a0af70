"""What every SPELA layer offers, and what an optimizer must offer to update one inside its op."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FusedOptimizer", "LocalLayer", "not_held", "owns", "step_by_gradient"]


class FusedOptimizer(ABC):
    """An optimizer that can run forward, gradient and update of a layer, or its projection, as one op."""

    @abstractmethod
    def can_fuse(self, parameters: list[nn.Parameter]) -> bool:
        """Whether these parameters of one layer share one set of hyper-parameters that the ops know."""

    @abstractmethod
    def linear_step(
        self,
        x: Tensor,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        slope: nn.Parameter | None,
        vectors: Tensor,
        target: Tensor,
        **settings: Any,
    ) -> tuple[Tensor, Tensor]:
        """Loss () and output (B, O) of a linear layer, whose parameters are updated in place."""

    @abstractmethod
    def projection_step(
        self,
        z: Tensor,
        projection: nn.Parameter,
        vectors: Tensor,
        groups: Tensor,
        target: Tensor,
        **settings: Any,
    ) -> tuple[Tensor, Tensor]:
        """Loss () and dloss/dz (B, K, D) of a projection, which is updated in place."""


class LocalLayer(nn.Module, ABC):
    """A layer that classifies and learns on its own: the contract that networks rely on."""

    num_classes: int

    @abstractmethod
    def scores(self, y: Tensor) -> Tensor:
        """Cosines (B, C) of layer outputs `y` to the class vectors."""

    @abstractmethod
    def local_loss(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss () differentiable in this layer's parameters only, and the detached output."""

    @abstractmethod
    def local_step(
        self, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, Tensor]:
        """Loss () and output, both from before the update that `optimizer` makes in place."""


def not_held(parameter: Tensor) -> ValueError:
    """The error for a parameter that is to learn and is in no group of the optimizer."""
    return ValueError(
        f"the optimizer does not hold a parameter of shape {tuple(parameter.shape)}: build it "
        "from net.parameters() of the network that is trained, or freeze that layer"
    )


def owns(layer: nn.Module, *names: str) -> bool:
    """Whether these are the layer's own parameters (or None), and nothing computes them from others.

    Pruning and reparametrisations such as weight norm put a computed tensor in a parameter's place, which
    an update in place would not reach.

    Args:
        layer: Any module.
        *names: Of its parameters.
    """
    return layer._parameters.keys() >= set(names)


def step_by_gradient(
    layer: LocalLayer, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer
) -> tuple[Tensor, Tensor]:
    """The unfused local step: the layer's gradients, then `optimizer.step()` on them alone.

    Args:
        layer: The layer to train.
        x: Its input.
        target: (B,) int64 labels.
        optimizer: Any torch optimizer that holds the layer's parameters. Parameters without a
            gradient are skipped by torch's optimizers, so every other layer stays as it is.

    Returns:
        loss () and the layer output, both from before the update.

    Raises:
        ValueError: If the optimizer does not hold a parameter that is to learn.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for parameter in layer.parameters():
        if parameter.requires_grad and id(parameter) not in held:
            raise not_held(parameter)
    optimizer.zero_grad(set_to_none=True)
    with torch.enable_grad():
        loss, y = layer.local_loss(x, target)
    if loss.requires_grad:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.detach(), y
