"""Peak memory and time of a training step of whole networks against the number of blocks.

Each network is trained in K blocks, and end to end: by plain backprop, with activation checkpointing, and
with gradients accumulated over parts of the batch.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from spela.benchmarks.clock import interleaved_medians
from spela.benchmarks.memory import checkpointed, peak_bytes
from spela.bodies import build_body
from spela.convert import convert
from spela.optim import LocalSGD

__all__ = ["BLOCK_COUNTS", "NETWORK_SIZES", "block_points"]

_LR = 0.01
_CLASSES = 10
_MICRO_BATCHES = 8
BLOCK_COUNTS: tuple[int | str, ...] = (1, 2, 3, 4, "layers")
# Name, width, batch: channels of the first convolution, on images of 3 x 32 x 32.
NETWORK_SIZES = (("vgg", 32, 128), ("resnet", 32, 128))
Step = Callable[[], object]


def _data(batch: int, pixels: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, pixels, pixels, generator=g)
    return x, torch.arange(batch) % _CLASSES


def _body(name: str, width: int, pixels: int) -> nn.Sequential:
    return build_body(name, (3, pixels, pixels), width, seed=0)


def _blocks(name: str, width: int, data: tuple[Tensor, Tensor], blocks: int | str) -> Step:
    x, target = data
    net = convert(_body(name, width, x.shape[-1]), _CLASSES, x[:2], blocks=blocks, hidden=256)
    optimizer = LocalSGD(net.parameters(), lr=_LR)
    return lambda: net.local_step(x, target, optimizer)


def _end_to_end(
    name: str,
    width: int,
    data: tuple[Tensor, Tensor],
    forward: Callable[[nn.Sequential, Tensor], Tensor],
    parts: int,
) -> Step:
    x, target = data
    body = _body(name, width, x.shape[-1])
    with torch.no_grad():
        features = body(x[:2]).shape[1]
    net = nn.Sequential(*body, nn.Linear(features, _CLASSES))
    optimizer = torch.optim.SGD(net.parameters(), lr=_LR)

    def step() -> None:
        for rows, labels in zip(x.chunk(parts), target.chunk(parts), strict=True):
            (nn.functional.cross_entropy(forward(net, rows), labels) / parts).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def block_points(
    sizes: Iterable[tuple[str, int, int]] = NETWORK_SIZES,
    *,
    counts: Iterable[int | str] = BLOCK_COUNTS,
    pixels: int = 32,
    least: int = 5,
) -> list[dict[str, Any]]:
    """Peak memory and time of a step of each network and method, by SGD.

    Args:
        sizes: Name, width and batch of each network, as in `spela.bodies`.
        counts: Numbers of blocks, or "layers".
        pixels: Side of the images, which have three channels.
        least: Timed rounds, in which all methods take turns.

    Returns:
        One {"network", "width", "batch", "method", "peak_bytes", "step_ms"} a network and method; the methods
        are "1 block", "2 blocks", ..., "layers", backprop, checkpointing and accumulation.

    Example:
        >>> points = block_points([("resnet", 4, 8)], counts=[2], pixels=8, least=1)
        >>> [point["method"] for point in points]
        ['2 blocks', 'backprop', 'checkpointing', 'accumulation']
    """
    points = []
    counts = list(counts)
    for name, width, batch in sizes:
        data = _data(batch, pixels)
        steps = {_method(count): _blocks(name, width, data, count) for count in counts}
        steps["backprop"] = _end_to_end(name, width, data, lambda net, x: net(x), 1)
        steps["checkpointing"] = _end_to_end(name, width, data, checkpointed, 1)
        parts = min(_MICRO_BATCHES, batch // 2)  # batch norm wants two samples
        steps["accumulation"] = _end_to_end(name, width, data, lambda net, x: net(x), parts)
        gc.collect()
        peaks = {method: peak_bytes(step) for method, step in steps.items()}
        seconds = interleaved_medians(steps, 0.0, least=least)
        points += [
            {
                "network": name,
                "width": width,
                "batch": batch,
                "method": method,
                "peak_bytes": peaks[method],
                "step_ms": 1e3 * seconds[method],
            }
            for method in steps
        ]
    return points


def _method(count: int | str) -> str:
    return "layers" if count == "layers" else f"{count} block{'s' * (count != 1)}"
