"""An nn.Sequential as the list of its modules' copies, with the shapes they give for a sample."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spela.layers import Frozen, RowNorm
from spela.layers.plain import departure

__all__ = ["Step", "trace_steps"]

# What only transforms stays as it is. Exact types: a subclass may compute something else.
_ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
)  # fmt: skip
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)
_OTHERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Identity)
_PLAIN = (*_ACTIVATIONS, *_POOLS, *_OTHERS, RowNorm, Frozen)
_ACCEPTED = (
    "Linear, Conv2d, activations, BatchNorm1d/2d, max and average pools, Dropout, Flatten, RowNorm, "
    "nested Sequential; put any other module into `frozen`"
)
_PUT_INTO_FROZEN = "or put the module into `frozen`, which stays whole"


class Step(NamedTuple):
    """One module of the flattened network."""

    path: str  # as in named_modules
    module: nn.Module
    shape: torch.Size  # of its output for the sample

    def __str__(self) -> str:
        return f"module {self.path!r} ({type(self.module).__name__})"


def _flatten(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    why = departure(model, nn.Sequential)
    if why:
        where = f"module {path!r}" if path else "`model`"
        raise ValueError(f"{where} ({type(model).__name__}) {why}; {_PUT_INTO_FROZEN}")
    # Not named_modules: it leaves out a module's second appearance.
    for name, module in model._modules.items():
        inner = f"{path}.{name}" if path else name
        if module is None:
            raise ValueError(f"module {inner!r} is None, which nothing can pass: remove it")
        if isinstance(module, nn.Sequential):
            yield from _flatten(module, inner)
        else:
            yield inner, module


def trace_steps(model: nn.Module, x: Tensor) -> list[Step]:
    """Copies of the modules in order, with the shapes they give; refuses the first that does not fit."""
    steps: list[Step] = []
    owners: dict[int, Step] = {}
    for path, original in _flatten(model):
        step = Step(path, original, x.shape)
        kinds = (nn.Linear, nn.Conv2d, *_PLAIN)
        kind = next((k for k in kinds if isinstance(original, k)), type(original))
        parametrised = parametrize.is_parametrized(original)
        if type(original) not in kinds and not parametrised:
            raise ValueError(f"{step} has no SPELA counterpart; accepted: {_ACCEPTED}")
        why = departure(original, kind)
        if why:
            raise ValueError(f"{step} {why}; {_PUT_INTO_FROZEN}")
        for parameter in original.parameters():
            if id(parameter) in owners:
                raise ValueError(
                    f"{step} shares a weight with {owners[id(parameter)]}: layers that learn apart "
                    "cannot share one, give it its own"
                )
            owners[id(parameter)] = step
        try:
            module: Any = copy.deepcopy(original).eval()
        except (
            RuntimeError
        ) as error:  # a tensor inside `Frozen` that is the result of a computation
            raise ValueError(f"{step} cannot be copied: {str(error).splitlines()[0]}") from error
        if hasattr(module, "inplace"):
            module.inplace = False  # it would overwrite a layer's output, which its gradient needs
        try:
            out = module(x)
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{step} does not take an input {tuple(x.shape)} of {x.dtype}: {reason}"
            ) from error
        if not isinstance(out, Tensor):
            raise ValueError(
                f"{step} returns more than a tensor: build it with return_indices=False"
            )
        if type(original) in (nn.Linear, nn.Conv2d):
            _check_layer(step, original, x)
        steps.append(Step(path, module.train(original.training), out.shape))
        x = out
    return steps


def _check_layer(step: Step, module: Any, x: Tensor) -> None:
    if isinstance(module, nn.Conv2d):
        if x.dim() != 4:
            raise ValueError(f"{step} must get a batch (B, C, H, W), got {tuple(x.shape)}")
        if module.padding_mode != "zeros":
            raise ValueError(f"{step} pads by {module.padding_mode!r}; accepted: 'zeros'")
    elif x.dim() != 2:
        raise ValueError(f"{step} must get rows (B, I), got {tuple(x.shape)}: put a Flatten before")
    elif module.out_features < 2:
        raise ValueError(
            f"{step} has one output: in one dimension no direction can turn; give it num_classes"
        )
