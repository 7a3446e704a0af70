"""What SGD and Adam share: checks of their numbers, parameters' state, steps of a stack of layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from spela.layers.contract import ChainLayer, FusedOptimizer
from spela.layers.steps import has_step_hooks, not_held, set_rates
from spela_kernels.linear.steps import Planned, fits, prepare
from spela_kernels.precision import may_be_read
from spela_kernels.rules import check_state, check_updated, rates_of

__all__ = ["LocalOptimizer", "Params"]

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


def _without_compiler(method: Callable[..., _Result]) -> Callable[..., _Result]:
    """torch's method without the guard that keeps torch.compile out of it: the guard imports the whole
    compiler on its first call, seconds before a first step. Whatever else is around the method stays."""
    guarded = getattr(method, "__globals__", {}).get("__name__") == "torch._compile"
    return getattr(method, "__wrapped__", method) if guarded else method


class LocalOptimizer(FusedOptimizer, torch.optim.Optimizer):
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

    @contextmanager
    def _counted(
        self, parameters: Sequence[Tensor | None], fresh: Iterable[Tensor]
    ) -> Iterator[None]:
        """A step by one op, of which nothing is left where the op refuses the batch: no count, no new state.

        Counted before, as Ctrl-C may come behind the first of the op's updates.
        """
        self._count(*parameters)
        try:
            yield
        except (TypeError, ValueError):
            self._count(*parameters, steps=-1)
            self._forget(fresh)
            raise

    def _buffers(self, name: str, parameters: Iterable[Tensor | None]) -> list[Any]:
        """The state `name` of each parameter, None where there is no parameter or no state."""
        return [None if p is None else self.state[p].get(name) for p in parameters]
