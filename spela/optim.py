"""Optimizers that know the fused update: torch.optim's SGD and Adam with local steps on top.

State, hyper-parameters and LR schedulers are torch's, so `step()` on gradients and the fused local steps
can be mixed and give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from spela.layers.contract import FusedOptimizer
from spela_kernels import linear_adam_, linear_sgd_
from spela_kernels.linear import Parameters

__all__ = ["LocalAdam", "LocalSGD"]

Params = Iterable[Tensor] | Iterable[dict[str, Any]]


class _LocalOptimizer(FusedOptimizer, torch.optim.Optimizer):
    """Finding the group of a parameter, and its learning rate as a tensor."""

    def _group_of(self, parameter: Tensor) -> dict[str, Any]:
        for group in self.param_groups:
            if any(parameter is held for held in group["params"]):
                return group
        raise ValueError(
            f"the optimizer does not hold a parameter of shape {tuple(parameter.shape)}: build it "
            "from net.parameters() of the network that is trained, or freeze that layer"
        )

    def can_fuse(self, parameters: list[nn.Parameter]) -> bool:
        """Whether all are in one parameter group (None held: an error, by `linear_step`)."""
        first = self._group_of(parameters[0])
        return all(self._group_of(parameter) is first for parameter in parameters)

    def _lr(self, group: dict[str, Any], like: Tensor) -> Tensor:
        lr = group["lr"]
        if isinstance(lr, Tensor):
            return lr
        dtype = torch.promote_types(like.dtype, torch.float32)
        return torch.tensor(lr, dtype=dtype, device=like.device)

    def _buffers(self, name: str, params: Parameters) -> Parameters:
        weight, *others = params
        held = (None if p is None else self.state[p][name] for p in others)
        return Parameters(self.state[weight][name], *held)


class LocalSGD(_LocalOptimizer, torch.optim.SGD):
    """torch.optim.SGD (dampening 0) that runs a SPELA layer's whole step as one op.

    Args:
        params: Parameters or parameter groups, as in torch; groups give layers their own lr.
        lr: Learning rate per mean-sample loss; float or 0-d tensor.
        momentum: Factor of the momentum buffer.
        weight_decay: L2 penalty added to the gradient.
        nesterov: Nesterov momentum.

    Raises:
        ValueError: For values torch.optim.SGD refuses.

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
        """Forward, gradient and SGD update of a linear layer: see `spela_kernels.linear_sgd_`."""
        group, params = self._group_of(weight), Parameters(weight, bias, slope)
        buffers = None
        if group["momentum"] != 0:
            for parameter in params:
                if parameter is not None and self.state[parameter].get("momentum_buffer") is None:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            buffers = self._buffers("momentum_buffer", params)
        return linear_sgd_(
            x,
            weight,
            bias,
            vectors,
            target,
            self._lr(group, weight),
            slope=slope,
            momentum_buffers=buffers,
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
            **settings,
        )


class LocalAdam(_LocalOptimizer, torch.optim.Adam):
    """torch.optim.Adam that runs a SPELA layer's whole step as one op.

    Args:
        params: Parameters or parameter groups, as in torch; groups give layers their own lr.
        lr: Learning rate; float or 0-d tensor.
        betas: Decay of the two moments.
        eps: Added to the denominator.
        weight_decay: L2 penalty added to the gradient (not decoupled).

    Raises:
        ValueError: For values torch.optim.Adam refuses.

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
        """Forward, gradient and Adam update of a linear layer: see `spela_kernels.linear_adam_`."""
        group, params = self._group_of(weight), Parameters(weight, bias, slope)
        for parameter in params:
            if parameter is None:
                continue
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        # Counted on only after the op has accepted its arguments, so that a refused batch leaves no trace.
        result = linear_adam_(
            x,
            weight,
            bias,
            vectors,
            target,
            self._lr(group, weight),
            slope=slope,
            exp_avgs=self._buffers("exp_avg", params),
            exp_avg_sqs=self._buffers("exp_avg_sq", params),
            step=self.state[weight]["step"] + 1,
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            **settings,
        )
        for parameter in params:
            if parameter is not None:
                self.state[parameter]["step"] += 1
        return result
