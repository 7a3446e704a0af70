"""What the rivals share: a hidden layer with a hand-written gradient, and a network of them with its step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from spela.layers.steps import check_step, learning, step_on
from spela_kernels.activations import get_activation
from spela_kernels.contracts import check_labels, check_target

__all__ = ["Gradients", "HiddenLayer", "RivalSequential", "layer_sweep", "weight_gradients"]

Gradients = list[tuple[Tensor, Tensor]]


class HiddenLayer(nn.Linear):
    """y = phi(x W^T + b): nn.Linear with its activation, and its gradients without autograd.

    Args:
        in_features: I.
        out_features: O.
        bias: Whether there is a bias.
        activation: One of the activations whose derivative follows from the output: relu, leaky_relu,
            tanh, elu or identity.
        negative_slope: Slope of leaky_relu below zero.
        gain: Weights start as U(+-gain / sqrt(I)): 1 is torch's default, sqrt(6) He's. The bias starts
            as torch's default.
        generator: Source of the initial weights; None: torch's default one.
        device: Where the parameters live.
        dtype: Their dtype; None: torch's default dtype.

    Raises:
        ValueError: For an activation that is not one of these.

    Shape:
        (B, I) -> (B, O).

    Example:
        >>> HiddenLayer(4, 8)(torch.randn(5, 4)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        activation: str = "relu",
        negative_slope: float = 1e-3,
        gain: float = 1.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        if get_activation(activation).needs_input:
            raise ValueError(
                f"activation {activation!r} is not for this method, whose derivative is read off the "
                "output: use relu, leaky_relu, tanh, elu or identity"
            )
        self.activation = activation
        self.negative_slope = negative_slope
        self.gain = gain
        self._initialise(generator)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        bound = 1 / math.sqrt(self.in_features)
        self.weight.uniform_(-self.gain * bound, self.gain * bound, generator=generator)
        if self.bias is not None:
            self.bias.uniform_(-bound, bound, generator=generator)

    def reset_parameters(self) -> None:
        """Draw the parameters anew from torch's default generator, as the constructor does."""
        if hasattr(self, "gain"):  # nn.Linear calls this before it is set
            self._initialise(None)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, I) -> y (B, O)."""
        z = nn.functional.linear(x, self.weight, self.bias)
        return get_activation(self.activation).forward(z, self.negative_slope)

    def gradients(self, x: Tensor, y: Tensor, dy: Tensor) -> Gradients:
        """Gradients of the parameters from that of the output: dz = phi'(y) dy, dW = dz^T x, db = sum dz.

        Args:
            x: (B, I) input.
            y: (B, O) output for it.
            dy: (B, O) gradient of a loss with respect to y; overwritten.

        Returns:
            Pairs of a parameter and its gradient.
        """
        dz = dy.mul_(get_activation(self.activation).derivative(y, self.negative_slope))
        found: Gradients = [(self.weight, dz.T @ x)]
        if self.bias is not None:
            found.append((self.bias, dz.sum(dim=0)))
        return found

    def extra_repr(self) -> str:
        """nn.Linear's line and the activation."""
        return f"{super().extra_repr()}, activation={self.activation}"


def layer_sweep(
    net: nn.Sequential, kind: type[Any], x: Tensor, told: Tensor
) -> Iterator[tuple[Tensor, Gradients]]:
    """Loss () and gradients, layer by layer; the next layer's input is from before any update.

    Args:
        net: The network.
        kind: Its layers with `local_gradients` of their own.
        x: The first module's input.
        told: What every such layer is told of the samples: their labels or signs.
    """
    for module in net:
        if isinstance(module, kind):
            loss, x, found = module.local_gradients(x, told)
            yield loss, found
        else:
            x = module(x)


def weight_gradients(
    net: nn.Sequential, sweep: Iterable[tuple[Tensor, Gradients]]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of a sweep's gradients those of the layers' weights, for diagnostics.

    Args:
        net: The network.
        sweep: Its losses () and gradients.

    Returns:
        (loss (), weight, gradient) of every linear layer.
    """
    weights = {id(module.weight) for module in net if isinstance(module, nn.Linear)}
    return [
        (loss, parameter, gradient)
        for loss, found in sweep
        for parameter, gradient in found
        if id(parameter) in weights
    ]


class RivalSequential(nn.Sequential, ABC):
    """A network that learns by gradients found by hand, each applied before the next is looked for.

    Attributes:
        num_classes: C.
    """

    num_classes: int

    @abstractmethod
    def local_gradients(self, x: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Gradients]]:
        """Loss () and gradients of each part that learns by itself, in the order of their updates."""

    def probe_gradients(self, x: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Loss (), weight and local gradient of every layer, for diagnostics."""
        return weight_gradients(self, self.local_gradients(x, target))

    def predict(self, x: Tensor) -> Tensor:
        """Labels (B,)."""
        with torch.no_grad():
            return self(x).argmax(dim=1)

    @learning
    def local_step(self, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """One step: a loss a part that learns by itself, from before its update.

        Args:
            x: A batch of inputs.
            target: (B,) int64 labels, 0 to C - 1.
            optimizer: Any torch optimizer of net.parameters().

        Returns:
            (L,) losses.

        Raises:
            ValueError: If there are not as many labels as samples, at least one, a label is of no class, or
                the optimizer does not hold a parameter that is to learn.
            TypeError: If labels are not int64, or it is no optimizer.
        """
        check_target(x, target)
        check_labels(target, self.num_classes)
        check_step([self], optimizer)
        losses = []
        for loss, found in self.local_gradients(x, target):
            step_on(optimizer, found)
            losses.append(loss)
        return torch.stack(losses)
