"""How layers are spread over processes: contiguous stages whose slowest is as fast as can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from spela.cutting import split_evenly
from spela.early_exit.costs import count_multiply_adds
from spela.layers import LocalLayer
from spela.layers.block import sample_dtype
from spela.layers.modes import probing

__all__ = ["Trace", "stage_of_modules", "trace"]


class Trace(NamedTuple):
    """What a sample meets at one module: the shape that comes in, and the multiply-adds of a SPELA layer."""

    shape: tuple[int, ...]
    cost: int


@torch.no_grad()
def trace(net: nn.Sequential, sample_shape: tuple[int, ...]) -> list[Trace]:
    """Send one sample of zeros through a network, in eval mode; the mode is put back.

    Args:
        net: On the CPU.
        sample_shape: Shape of one input.

    Returns:
        One `Trace` a module of the network.

    Example:
        >>> from spela.layers import SpelaLinear
        >>> trace(nn.Sequential(nn.Flatten(), SpelaLinear(6, 4, 3)), (2, 3))
        [Trace(shape=(2, 3), cost=0), Trace(shape=(6,), cost=36)]
    """
    x = torch.zeros(1, *sample_shape, dtype=sample_dtype(net), device=next(net.parameters()).device)
    found = []
    with probing(net):
        for module in net:
            shape = tuple(x.shape[1:])
            cost, x = count_multiply_adds(module, x)
            if isinstance(module, LocalLayer):
                cost += count_multiply_adds(module.scores, x)[0]
            found.append(Trace(shape, cost))
    return found


def stage_of_modules(net: nn.Sequential, traces: Sequence[Trace], stages: int) -> list[int]:
    """The stage of each module of a SPELA network; what only transforms goes with the next layer.

    Args:
        net: A network whose last module is a SPELA layer.
        traces: Of its modules, from `trace`.
        stages: Number of stages, at most its SPELA layers.

    Raises:
        ValueError: If there are more stages than SPELA layers.

    Example:
        >>> from spela.layers import SpelaLinear
        >>> net = nn.Sequential(nn.Flatten(), SpelaLinear(6, 4, 3), nn.Dropout(), SpelaLinear(4, 6, 3))
        >>> stage_of_modules(net, trace(net, (2, 3)), 2)
        [0, 0, 1, 1]
    """
    is_local = [isinstance(module, LocalLayer) for module in net]
    costs = [t.cost for t, local in zip(traces, is_local, strict=True) if local]
    if stages > len(costs):
        raise ValueError(
            f"{len(costs)} layers cannot be spread over {stages} processes: start at most "
            f"{len(costs)}, or use --parallel data"
        )
    layers = split_evenly(costs, stages)
    done = 0
    found = []
    for local in is_local:
        found.append(layers[done])
        done += local
    return found
