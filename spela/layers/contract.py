"""What every SPELA layer offers, and what an optimizer must offer to update one inside its op."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from spela_kernels.contracts import Settings
from spela_kernels.linear import Parameters

__all__ = ["ChainLayer", "FusedOptimizer", "LocalLayer"]

_Result = TypeVar("_Result")


class ChainLayer(NamedTuple):
    """A linear layer of a stack whose steps may be one call."""

    params: Parameters
    vectors: Tensor  # (C, O)
    settings: Settings
    norm: float  # that rows of its input are scaled to; 0: they are left as they are
    dropout: float  # probability that a number of its input, then, becomes zero


class FusedOptimizer(ABC):
    """An optimizer that can run forward, gradient and update of a layer, or its projection, as one op."""

    @abstractmethod
    def can_fuse(self, parameters: list[nn.Parameter]) -> bool:
        """Whether these parameters of one layer share one set of hyper-parameters that the ops know."""

    @abstractmethod
    def check_rates(self) -> None:
        """Refuse, with a ValueError, a learning rate that nothing learns with."""

    @abstractmethod
    def check_remembered(self, parameters: Iterable[nn.Parameter]) -> None:
        """Refuse, with a ValueError, state of another shape than its parameter's."""

    @abstractmethod
    def between_hooks(self, run: Callable[..., _Result], *args: Any, **kwargs: Any) -> _Result:
        """`run(*args, **kwargs)`, a layer's whole step, between the optimizer's step hooks."""

    @abstractmethod
    def update(self, gradients: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Update parameters in place with the gradients given, in no hooks; no `.grad` is touched."""

    @abstractmethod
    def linear_step(
        self, x: Tensor, params: Parameters, vectors: Tensor, target: Tensor, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """Loss () and output (B, O) of a linear layer, whose parameters are updated in place."""

    @abstractmethod
    def linear_steps(
        self,
        layers: Sequence[ChainLayer],
        x: Tensor,
        target: Tensor,
        sizes: Sequence[int],
        rates: Sequence[float] | None,
    ) -> Tensor | None:
        """Steps of a stack of linear layers, a batch each, in one compiled call: losses (steps, L).

        Labels are checked. `sizes`: samples of every batch. `rates`: of every step, for all groups; None:
        the groups' own. None is returned, and nothing was done, where there is no such call for them.
        """

    @abstractmethod
    def projection_step(
        self, z: Tensor, projection: nn.Parameter, *fixed: Tensor, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """Loss () and dloss/dz (B, K, D) of a projection, which is updated in place.

        `fixed`: class vectors (K, G, d), groups (K, C) and labels (B,).
        """


class LocalLayer(nn.Module, ABC):
    """A layer that classifies and learns on its own: the contract that networks rely on.

    A subclass has `forward`, which gives the output y that the next layer gets, and the three methods below;
    `SpelaSequential` trains and asks any module that has them.

    Attributes:
        num_classes: C.
        scores_are_cosines: Whether scores are in [-1, 1]; else they are logits.
        learns_from_one: Whether one sample is a batch to learn from.

    Example:
        >>> from spela import SpelaBlock, SpelaConv2d, SpelaLinear
        >>> all(issubclass(kind, LocalLayer) for kind in (SpelaLinear, SpelaConv2d, SpelaBlock))
        True
    """

    num_classes: int
    scores_are_cosines = True  # or logits, as of a rival's linear head
    learns_from_one = True  # or from batches of two samples and more, which it compares

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take also the state of the plain torch layer: what that lacks stays as it is."""
        given = {key[len(prefix) :] for key in state_dict if key.startswith(prefix)}
        if given and given == {
            name for name in ("weight", "bias") if getattr(self, name, None) is not None
        }:
            for name, own in self.state_dict().items():
                state_dict.setdefault(prefix + name, own)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @abstractmethod
    def scores(self, y: Tensor) -> Tensor:
        """Cosines (B, C) of layer outputs `y` (B, ...) to the class vectors, without a graph."""

    @abstractmethod
    def local_loss(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss () differentiable in this layer's parameters only, and the detached output; labels (B,)."""

    @abstractmethod
    def local_step(
        self, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, Tensor]:
        """Loss () and output, both from before the update that `optimizer` makes in place."""
