"""Optimizers that know the fused update: torch.optim's SGD and Adam with local steps on top.

State, hyper-parameters and LR schedulers are torch's, so `step()` on gradients and the fused local steps
can be mixed and give the same numbers, to rounding. Two exceptions, both of convolutions with batch norm:
where its factor is exactly 0, all values of a max-pooling window are equal, and the fused step takes another
subgradient than autograd does; and in a batch's own statistics the gradient of the convolution's bias is 0,
where autograd finds rounding, of which Adam makes steps.

Step hooks are called once for each layer that a local step trains, around its whole update, whatever the
optimizer: torch's own optimizers call them in their `step`. A fused step has no gradients for a
pre-hook to see.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from spela.layers.contract import ChainLayer, FusedOptimizer, LocalLayer
from spela.layers.in_training import awake_parts
from spela.layers.steps import has_step_hooks, not_held, set_rates
from spela_kernels import linear_adam_, linear_sgd_, projection_adam_, projection_sgd_
from spela_kernels.cosines import scalar_like
from spela_kernels.linear import Parameters
from spela_kernels.linear.steps import Planned, fits, prepare
from spela_kernels.linear.types import NO_BUFFERS
from spela_kernels.precision import may_be_read
from spela_kernels.rules import (
    AdamRule,
    SgdRule,
    Step,
    check_state,
    check_updated,
    fused_update_,
    rates_of,
    update_,
)

__all__ = ["LocalAdam", "LocalSGD", "layer_groups"]

# Options of torch's optimizers that the fused ops do not have; a parameter group or a loaded state may set
# them. A layer then takes torch's own step on its gradient.
_NOT_FUSED = ("maximize", "dampening", "amsgrad", "decoupled_weight_decay", "differentiable")

_BUFFERS = frozenset({"momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"})

# What a parameter group holds, and below what it must stay.
_FLOAT32 = torch.finfo(torch.float32).max  # beyond it a fused step could not take them
_BOUNDS = {"lr": _FLOAT32, "momentum": 1.0, "weight_decay": _FLOAT32, "eps": _FLOAT32, "betas": 1.0}

_Result = TypeVar("_Result")
Params = Iterable[Tensor] | Iterable[dict[str, Any]]


def _check_numbers(group: dict[str, Any]) -> None:
    for name, bound in _BOUNDS.items():
        value = group.get(name, 0.0)
        for number in value if isinstance(value, tuple | list) else (value,):
            if not 0 <= float(number) < bound:
                raise ValueError(f"`{name}` must be in [0, {bound:g}), got {float(number)}")


def _check_rate(group: dict[str, Any]) -> None:
    rate = group["lr"]
    if isinstance(rate, Tensor) and not may_be_read(rate):
        return
    if not 0 <= rate < _FLOAT32:
        raise ValueError(f"`lr` must be in [0, {_FLOAT32:g}), got {float(rate)}")


def _check_moments_fit(parameter: Tensor) -> None:
    if parameter.dtype == torch.float16:
        raise ValueError(
            "Adam's second moments of float16 weights would be 0: keep weights in float32 and train under "
            "autocast, or take LocalSGD"
        )


def _without_compiler(method: Callable[..., _Result]) -> Callable[..., _Result]:
    """torch's method without the guard that keeps torch.compile out of it: the guard imports the whole
    compiler on its first call, seconds before a first step. Whatever else is around the method stays."""
    guarded = getattr(method, "__globals__", {}).get("__name__") == "torch._compile"
    return getattr(method, "__wrapped__", method) if guarded else method


class _LocalOptimizer(FusedOptimizer, torch.optim.Optimizer):
    """Finding the group of a parameter, and its state."""

    state_dict = _without_compiler(torch.optim.Optimizer.state_dict)
    zero_grad = _without_compiler(torch.optim.Optimizer.zero_grad)

    # torch's schedulers warn if no step() came before their own; a fused step does not call it.
    _opt_called = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, which constructors call; refuses numbers that torch takes and nothing learns with.

        Raises:
            ValueError: If a number is negative, NaN or beyond float32, or a momentum not below 1.
        """
        _check_numbers({**self.defaults, **param_group})
        _without_compiler(torch.optim.Optimizer.add_param_group)(self, param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; refuses, before anything is loaded, the state of a parameter of another shape.

        Torch's fused Adam would write beyond the end of such a state.

        Raises:
            ValueError: Naming what differs; or as torch's, where groups do.
        """
        saved = (index for group in state_dict["param_groups"] for index in group["params"])
        own = (parameter for group in self.param_groups for parameter in group["params"])
        # Torch refuses other numbers of them.
        for index, parameter in zip(saved, own, strict=False):
            for name, value in (state_dict["state"].get(index) or {}).items():
                if name in _BUFFERS and value is not None and value.shape != parameter.shape:
                    raise ValueError(
                        f"the saved `{name}` is {tuple(value.shape)}, its parameter "
                        f"{tuple(parameter.shape)}: load the state of an optimizer of the same network"
                    )
        _without_compiler(torch.optim.Optimizer.load_state_dict)(self, state_dict)

    def _group_of(self, parameter: Tensor) -> dict[str, Any]:
        for group in self.param_groups:
            for held in group["params"]:  # a loop: any() over a generator slows small layers
                if held is parameter:
                    return group
        raise not_held(parameter)

    def check_rates(self) -> None:
        """Refuse a learning rate that nothing learns with.

        Raises:
            ValueError: If one is negative, NaN or beyond float32.
        """
        for group in self.param_groups:
            _check_rate(group)

    def can_fuse(self, parameters: list[nn.Parameter]) -> bool:
        """Whether all are in one parameter group whose rule the ops know.

        Raises:
            ValueError: If one is in none, or its rate is no number that anything learns with.
        """
        first = self._group_of(parameters[0])
        _check_rate(first)
        if any(first.get(option) for option in _NOT_FUSED):
            return False
        return all(self._group_of(parameter) is first for parameter in parameters[1:])

    def check_remembered(self, parameters: Iterable[nn.Parameter]) -> None:
        """Refuse state of another shape than its parameter's, for layers that move in several updates.

        Raises:
            ValueError: Naming what differs.
        """
        for parameter in parameters:
            held = self.state.get(parameter) or {}
            for name in _BUFFERS & held.keys():
                if held[name] is not None:
                    check_state(name, held[name], parameter)

    def between_hooks(self, run: Callable[..., _Result], *args: Any, **kwargs: Any) -> _Result:
        """`run(*args, **kwargs)` between the hooks that torch calls around `step`."""
        if not has_step_hooks(self):
            return run(*args, **kwargs)
        return self.profile_hook_step(lambda optimizer: run(*args, **kwargs))(self)

    @abstractmethod
    def _planned(self, layer: ChainLayer) -> tuple[Planned, float]:
        """A layer with its rule and buffers, and how many steps it has taken."""

    def linear_steps(
        self,
        layers: Sequence[ChainLayer],
        x: Tensor,
        target: Tensor,
        sizes: Sequence[int],
        rates: Sequence[float] | None,
    ) -> Tensor | None:
        """Steps of a stack of linear layers, a batch each: see `spela_kernels.linear.steps.prepare`."""
        if has_step_hooks(self):
            return None
        fresh = [p for layer in layers for p in self._stateless(layer.params)]
        try:
            planned, counts, own = [], [], []
            for layer in layers:
                held = [p for p in layer.params if p is not None]
                if not self.can_fuse(held):  # type: ignore[arg-type]
                    return None
                plan, count = self._planned(layer)
                if not fits(plan, max(sizes)):
                    return None
                buffers = (*plan.params, *plan.first, *plan.second)
                check_updated(buffers, (x, plan.vectors))
                planned.append(plan)
                counts.append(count)
                own.append(self._group_of(layer.params.weight)["lr"])
            # As the ops have them: float32.
            pairs = [
                rates_of(
                    plan.rule,
                    float(np.float32(float(lr) if rates is None else rates[step])),
                    count + step + 1,
                )
                for step in range(len(sizes))
                for plan, count, lr in zip(planned, counts, own, strict=True)
            ]
            ready = prepare(planned, x, target, sizes, pairs)
        except (TypeError, ValueError):
            self._forget(fresh)
            raise
        # Counted before: Ctrl-C in the call, which ends first, is raised right behind it.
        for layer in layers:
            self._count(*layer.params, steps=len(sizes))
            torch.autograd.graph.increment_version([p for p in layer.params if p is not None])
        if rates is not None:
            set_rates(self, rates[-1])
        ready.take()
        return ready.losses

    def _count(self, *parameters: Tensor | None, steps: int = 1) -> None:
        """Count steps, or by a negative number take them back: a refused batch leaves no trace."""

    def _stateless(self, parameters: Iterable[Tensor | None]) -> list[Tensor]:
        """Those of which nothing is remembered yet."""
        return [p for p in parameters if p is not None and not self.state.get(p)]

    def _forget(self, parameters: Iterable[Tensor]) -> None:
        """Drop the state that was made for a step that was refused."""
        for parameter in parameters:
            self.state.pop(parameter, None)

    def _buffers(self, name: str, parameters: Iterable[Tensor | None]) -> list[Any]:
        """The state `name` of each parameter, None where there is no parameter or no state."""
        return [None if p is None else self.state[p].get(name) for p in parameters]


class LocalSGD(_LocalOptimizer, torch.optim.SGD):
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
        try:
            return linear_sgd_(x, weight, bias, vectors, target, slope=slope, **settings)
        except (TypeError, ValueError):
            self._forget(fresh)
            raise

    def projection_step(
        self, z: Tensor, projection: nn.Parameter, *fixed: Tensor, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """Gradient and SGD update of a projection: see `spela_kernels.projection_sgd_`."""
        rule, fresh = self._rule(projection), self._stateless([projection])
        (buffer,) = self._momenta(rule, projection)
        settings |= {"momentum_buffer": buffer, **rule}
        vectors, groups, target = fixed
        try:
            return projection_sgd_(z, projection, vectors, groups, target, **settings)
        except (TypeError, ValueError):
            self._forget(fresh)
            raise


class LocalAdam(_LocalOptimizer, torch.optim.Adam):
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
        self._count(*params)  # before, as Ctrl-C may come behind the first of the op's updates
        try:
            return linear_adam_(x, weight, bias, vectors, target, slope=slope, **settings)
        except (TypeError, ValueError):
            self._count(*params, steps=-1)
            self._forget(fresh)
            raise

    def projection_step(
        self, z: Tensor, projection: nn.Parameter, *fixed: Tensor, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """Gradient and Adam update of a projection: see `spela_kernels.projection_adam_`."""
        fresh = self._stateless([projection])
        (first,), (second,) = self._moments(projection)
        settings |= {"exp_avg": first, "exp_avg_sq": second, **self._rule(projection)}
        settings["step"] = self.state[projection]["step"] + 1
        self._count(projection)
        vectors, groups, target = fixed
        try:
            return projection_adam_(z, projection, vectors, groups, target, **settings)
        except (TypeError, ValueError):
            self._count(projection, steps=-1)
            self._forget(fresh)
            raise


def layer_groups(net: nn.Module, lrs: Sequence[float | None]) -> list[dict[str, Any]]:
    """Parameter groups that give each SPELA layer a learning rate of its own.

    Args:
        net: A network of SPELA layers; parameters outside of them are in no group.
        lrs: One learning rate a SPELA layer, first to last; None leaves a layer to the optimizer's
            own `lr`, 0 keeps it as it is (freezing it saves the work, too).

    Returns:
        Groups for any torch optimizer, `LocalSGD` and `LocalAdam` among them.

    Raises:
        ValueError: If the numbers of rates and layers differ.

    Example:
        >>> from spela.layers import SpelaLinear
        >>> net = nn.Sequential(SpelaLinear(4, 8, 3), SpelaLinear(8, 8, 3))
        >>> optimizer = LocalAdam(layer_groups(net, [1e-4, None]), lr=1e-3)
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.0001, 0.001]
    """
    layers = [module for module in awake_parts(net) if isinstance(module, LocalLayer)]
    if len(layers) != len(lrs):
        raise ValueError(
            f"`lrs` has {len(lrs)} learning rates, the network {len(layers)} SPELA layers: give one each"
        )
    return [
        {"params": list(layer.parameters()), **({} if lr is None else {"lr": lr})}
        for layer, lr in zip(layers, lrs, strict=True)
    ]
