"""Adam whose update is a part of the layers' ops."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from spela.layers.contract import ChainLayer
from spela.optim.shared import LocalOptimizer, Params
from spela_kernels import linear_adam_, projection_adam_
from spela_kernels.cosines import scalar_like
from spela_kernels.linear import Parameters
from spela_kernels.linear.steps import Planned
from spela_kernels.precision import may_be_read
from spela_kernels.rules import AdamRule, Step, fused_update_

__all__ = ["LocalAdam"]


def _check_moments_fit(parameter: Tensor) -> None:
    if parameter.dtype == torch.float16:
        raise ValueError(
            "Adam's second moments of float16 weights would be 0: keep weights in float32 and train under "
            "autocast, or take LocalSGD"
        )


class LocalAdam(LocalOptimizer, torch.optim.Adam):
    """torch.optim.Adam that runs a SPELA layer's whole step as one op.

    Args:
        params: Parameters or parameter groups, as in torch; groups give layers their own lr.
        lr: Learning rate; float or 0-d tensor.
        betas: Decay of the two moments.
        eps: Added to the denominator.
        weight_decay: L2 penalty added to the gradient (not decoupled).

    Raises:
        ValueError: For values torch.optim.Adam refuses, NaN and infinity; in a step, for float16 weights,
            whose second moments would underflow.

    Example:
        >>> layer = torch.nn.Linear(4, 3)
        >>> LocalAdam(layer.parameters(), lr=1e-3).defaults["betas"]
        (0.9, 0.999)
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        torch.optim.Adam.__init__(self, params, lr, betas, eps, weight_decay, fused=True)

    def _init_group(self, group: dict[str, Any], params_with_grad: Any, *lists: Any) -> bool:
        """As torch's, which `step` calls: its fused update would not find state of another shape wrong."""
        for parameter in group["params"]:
            if parameter.grad is not None:
                _check_moments_fit(parameter)
        is_complex = super()._init_group(group, params_with_grad, *lists)
        self.check_remembered(params_with_grad)
        return is_complex

    def _rule(self, like: Tensor) -> dict[str, Any]:
        group = self._group_of(like)
        names = ("betas", "eps", "weight_decay")
        return {"lr": scalar_like(group["lr"], like), **{name: group[name] for name in names}}

    def can_fuse(self, parameters: list[nn.Parameter]) -> bool:
        """Also whether they have taken as many steps: an op corrects the moments of all by one count.

        On a GPU, where counts are not read, a part of a layer that learns later than the rest is told by its
        having no state yet.
        """
        if not super().can_fuse(parameters):
            return False
        if len(parameters) == 1:
            return True
        steps = [self.state[p]["step"] for p in parameters if self.state.get(p)]
        if len(steps) < len(parameters):
            return not steps
        first = steps[0]
        if not may_be_read(first):
            return True
        count = float(first)
        return all(float(step) == count for step in steps[1:])

    def _moments(self, *parameters: Tensor | None) -> tuple[list[Any], list[Any]]:
        for parameter in parameters:
            if parameter is None or self.state.get(parameter):
                continue
            _check_moments_fit(parameter)
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return self._buffers("exp_avg", parameters), self._buffers("exp_avg_sq", parameters)

    def _planned(self, layer: ChainLayer) -> tuple[Planned, float]:
        group = self._group_of(layer.params.weight)
        beta1, beta2 = group["betas"]
        rule = AdamRule(beta1, beta2, group["eps"], group["weight_decay"])
        first, second = self._moments(*layer.params)
        params, vectors, settings, *inputs = layer
        count = float(self.state[params.weight]["step"])
        return Planned(params, vectors, settings, rule, tuple(first), tuple(second), *inputs), count

    def _count(self, *parameters: Tensor | None, steps: int = 1) -> None:
        for parameter in parameters:
            if parameter is not None:
                self.state[parameter]["step"] += steps

    def update(self, gradients: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Adam's update of parameters in place: see `spela_kernels.rules.update_`."""
        for parameter, gradient in gradients:
            (first,), (second,) = self._moments(parameter)
            rule = self._rule(parameter)
            beta1, beta2 = rule["betas"]
            self._count(parameter)
            number = self.state[parameter]["step"]
            adam = AdamRule(beta1, beta2, rule["eps"], rule["weight_decay"])
            fused_update_(parameter, gradient, Step(adam, rule["lr"], first, second, number))

    def linear_step(
        self, x: Tensor, params: Parameters, vectors: Tensor, target: Tensor, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """Forward, gradient and Adam update of a linear layer: see `spela_kernels.linear_adam_`."""
        weight, bias, slope = params
        fresh = self._stateless(params)
        first, second = self._moments(*params)
        settings |= {"exp_avgs": Parameters(*first), "exp_avg_sqs": Parameters(*second)}
        settings |= {"step": self.state[weight]["step"] + 1, **self._rule(weight)}
        with self._counted(params, fresh):
            return linear_adam_(x, weight, bias, vectors, target, slope=slope, **settings)

    def projection_step(
        self, z: Tensor, projection: nn.Parameter, *fixed: Tensor, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """Gradient and Adam update of a projection: see `spela_kernels.projection_adam_`."""
        fresh = self._stateless([projection])
        (first,), (second,) = self._moments(projection)
        settings |= {"exp_avg": first, "exp_avg_sq": second, **self._rule(projection)}
        settings["step"] = self.state[projection]["step"] + 1
        vectors, groups, target = fixed
        with self._counted([projection], fresh):
            return projection_adam_(z, projection, vectors, groups, target, **settings)
