"""How layers are spread over processes: contiguous stages whose slowest is as fast as can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from spela.layers import LocalLayer, SpelaConv2d
from spela.layers.maps import convolved_size
from spela.layers.modes import in_eval_mode

__all__ = ["Trace", "split_evenly", "stage_of_modules", "trace"]


class Trace(NamedTuple):
    """What a sample meets at one module: the shape that comes in, and the multiply-adds there."""

    shape: tuple[int, ...]
    cost: int


def split_evenly(costs: Sequence[int], parts: int) -> list[int]:
    """Cut a sequence into contiguous parts with the smallest possible largest sum.

    Args:
        costs: Of each item, >= 0.
        parts: Number of parts, each with at least one item.

    Returns:
        The part of each item, 0 .. parts - 1, never falling; of equal cuts the one that leaves
        earlier parts fewer items.

    Raises:
        ValueError: If there are fewer items than parts.

    Example:
        >>> split_evenly([1, 1, 1, 3], 2)
        [0, 0, 0, 1]
    """
    if not 1 <= parts <= len(costs):
        raise ValueError(
            f"{len(costs)} layers cannot be spread over {parts} processes: start at most "
            f"{len(costs)}, or use --parallel data"
        )
    # best[k]: for the first k items in the parts so far, the largest sum and the cuts that give it.
    best: list[tuple[int, list[int]]] = [(sum(costs[:k]), [0] * k) for k in range(len(costs) + 1)]
    for part in range(1, parts):
        best = [
            min(
                (max(best[cut][0], sum(costs[cut:k])), best[cut][1] + [part] * (k - cut))
                for cut in range(part, k)
            )
            if k > part
            else (0, [])
            for k in range(len(costs) + 1)
        ]
    return best[-1][1]


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
        [Trace(shape=(2, 3), cost=0), Trace(shape=(6,), cost=24)]
    """
    x = next(net.parameters()).new_zeros((1, *sample_shape))
    found = []
    with in_eval_mode(net):
        for module in net:
            found.append(Trace(tuple(x.shape[1:]), _multiply_adds(module, tuple(x.shape[2:]))))
            x = module(x)
    return found


def _multiply_adds(module: nn.Module, size: tuple[int, ...]) -> int:
    if isinstance(module, SpelaConv2d):
        height, width = convolved_size(module, size)
        return module.weight.numel() * height * width + module.projection.numel()
    return module.weight.numel() if isinstance(module, nn.Linear) else 0


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
    layers = split_evenly(
        [t.cost for t, local in zip(traces, is_local, strict=True) if local], stages
    )
    done = 0
    found = []
    for local in is_local:
        found.append(layers[done])
        done += local
    return found
