"""Whether the parts of a network compute what the network does: its output, and the gradients of its loss."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spela.layers.modes import probing
from spela.layers.readout import check_readable
from spela.process import seeded

__all__ = ["check_gradients", "check_output", "sample_output", "training_sample"]

# Of the gradient's norm, and of the largest one's: the same operations in the same order differ by nothing on
# a CPU, by atomic sums on a GPU.
_CLOSE, _NOISE = 1e-3, 1e-6
# Rows that gradients are compared on: enough for a batch norm, few for a large network.
_ROWS = 4


def training_sample(x: Tensor) -> Tensor:
    """A sample of at least two rows, in memory of its own: batch norm has no variance of one."""
    return x.repeat(2, *(1 for _ in x.shape[1:])) if len(x) == 1 else x.clone()


@torch.no_grad()
def sample_output(model: nn.Module, x: Tensor) -> Tensor:
    """What a network makes of a copy of the sample, in eval mode.

    Raises:
        TypeError, ValueError: If it does not take the sample, or makes no float tensor of it.
    """
    with probing(model):
        try:
            y = model(x.clone())
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{type(model).__name__} does not take an input {tuple(x.shape)} of {x.dtype}: "
                f"{str(error).splitlines()[0]}"
            ) from error
    return check_readable(y, type(model).__name__)


def check_output(model: nn.Module, parts: Sequence[nn.Module], x: Tensor, expected: Tensor) -> None:
    """Refuse parts that give another output than the network.

    Raises:
        ValueError: Saying what may have been lost.
    """
    y = sample_output(nn.Sequential(*parts), x)
    if not y.is_meta and not torch.allclose(y, expected, 1e-4, 1e-6, equal_nan=True):
        raise ValueError(
            f"the parts of {type(model).__name__} do not give its output: hooks, a `forward` set on the "
            "instance or randomness in evaluation are lost in tracing; put that into a module inside"
        )


def check_gradients(model: nn.Module, parts: Sequence[nn.Module], x: Tensor) -> None:
    """Refuse parts whose parameters get other gradients than the network's own, in training.

    Copies are trained, so that no statistic moves.

    Raises:
        ValueError: Naming the first such parameter.
    """
    if x.is_meta:
        return
    x = training_sample(x[:_ROWS])
    ours, expected = _gradients(parts, x), _gradients([model], x)
    noise = _NOISE * max((_norm(g) for g in expected.values()), default=0.0)
    for name in expected | ours:
        a, b = ours.get(name), expected.get(name)
        # A NaN is as far from a NaN as from anything: what overflows cannot be compared.
        if a is not None and b is not None and not _norm(a - b) > _CLOSE * _norm(b) + noise:
            continue
        raise ValueError(
            f"in the parts of {type(model).__name__}, {name} gets another gradient than in the network: "
            "torch.no_grad, a backward of its own, backward hooks and a `train` of its own are lost in "
            "tracing; freeze parameters by requires_grad_(False), and call such functions in a module "
            "without modules inside"
        )


def _gradients(modules: Sequence[nn.Module], x: Tensor) -> dict[str, Tensor]:
    """Of a random sum of the outputs, by the parameters' names; of those alone that it reaches."""
    copies = copy.deepcopy(nn.ModuleList(modules)).train()  # in one: parts may share a module
    # A parameter that several modules hold comes once, under the first of its names.
    named = {
        name.partition(".")[2]: parameter
        for name, parameter in copies.named_parameters()
        if parameter.requires_grad
    }
    with torch.enable_grad(), seeded(0, x.device):
        y = x.clone()
        for module in copies:
            y = module(y)
        weights = torch.randn(y.shape, dtype=y.dtype, device=y.device)
    if not (named and y.requires_grad):
        return {}
    found = torch.autograd.grad(y, list(named.values()), weights, allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def _norm(gradient: Tensor) -> float:
    return float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
