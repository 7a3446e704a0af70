"""SGD whose update is a part of the layers' ops."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from spela.layers.contract import ChainLayer
from spela.optim.shared import LocalOptimizer, Params
from spela_kernels import linear_sgd_, projection_sgd_
from spela_kernels.cosines import scalar_like
from spela_kernels.linear import Parameters
from spela_kernels.linear.steps import Planned
from spela_kernels.linear.types import NO_BUFFERS
from spela_kernels.rules import SgdRule, Step, update_

__all__ = ["LocalSGD"]


class LocalSGD(LocalOptimizer, torch.optim.SGD):
    """torch.optim.SGD (dampening 0) that runs a SPELA layer's whole step as one op.

    Args:
        params: Parameters or parameter groups, as in torch; groups give layers their own lr.
        lr: Learning rate per mean-sample loss; float or 0-d tensor.
        momentum: Factor of the momentum buffer.
        weight_decay: L2 penalty added to the gradient.
        nesterov: Nesterov momentum.

    Raises:
        ValueError: For values torch.optim.SGD refuses, NaN and infinity, and a momentum of 1 or more.

    Example:
        >>> layer = torch.nn.Linear(4, 3)
        >>> LocalSGD(layer.parameters(), lr=0.1).defaults["lr"]
        0.1
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        torch.optim.SGD.__init__(
            self, params, lr, momentum, 0.0, weight_decay, nesterov, foreach=False
        )

    def _rule(self, like: Tensor) -> dict[str, Any]:
        group = self._group_of(like)
        names = ("momentum", "weight_decay", "nesterov")
        return {"lr": scalar_like(group["lr"], like), **{name: group[name] for name in names}}

    def _momenta(self, rule: dict[str, Any], *parameters: Tensor | None) -> list[Any]:
        if rule["momentum"] == 0:
            return [None] * len(parameters)
        for parameter in parameters:
            if parameter is not None and self.state[parameter].get("momentum_buffer") is None:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return self._buffers("momentum_buffer", parameters)

    def _planned(self, layer: ChainLayer) -> tuple[Planned, float]:
        group = self._group_of(layer.params.weight)
        rule = SgdRule(group["momentum"], group["weight_decay"], group["nesterov"])
        first = tuple(self._momenta(rule._asdict(), *layer.params))
        params, vectors, settings, *inputs = layer
        return Planned(params, vectors, settings, rule, first, NO_BUFFERS, *inputs), 0.0

    def update(self, gradients: Iterable[tuple[Tensor, Tensor]]) -> None:
        """SGD's update of parameters in place: see `spela_kernels.rules.update_`."""
        for parameter, gradient in gradients:
            rule = self._rule(parameter)
            (buffer,) = self._momenta(rule, parameter)
            lr = rule.pop("lr")
            update_(parameter, gradient, Step(SgdRule(**rule), lr, buffer, None))

    def linear_step(
        self, x: Tensor, params: Parameters, vectors: Tensor, target: Tensor, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """Forward, gradient and SGD update of a linear layer: see `spela_kernels.linear_sgd_`."""
        weight, bias, slope = params
        rule, fresh = self._rule(weight), self._stateless(params)
        settings |= {"momentum_buffers": Parameters(*self._momenta(rule, *params)), **rule}
        with self._counted(params, fresh):
            return linear_sgd_(x, weight, bias, vectors, target, slope=slope, **settings)

    def projection_step(
        self, z: Tensor, projection: nn.Parameter, *fixed: Tensor, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """Gradient and SGD update of a projection: see `spela_kernels.projection_sgd_`."""
        rule, fresh = self._rule(projection), self._stateless([projection])
        (buffer,) = self._momenta(rule, projection)
        settings |= {"momentum_buffer": buffer, **rule}
        vectors, groups, target = fixed
        with self._counted([projection], fresh):
            return projection_sgd_(z, projection, vectors, groups, target, **settings)
