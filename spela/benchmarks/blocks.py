"""Peak memory and time of a training step of whole networks against the number of blocks.

Each network is trained in K blocks, with the heads of the experiment `blocks`, and end to end: by plain
backprop, with activation checkpointing, and with gradients accumulated over parts of the batch.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from spela.benchmarks.clock import interleaved_medians
from spela.benchmarks.memory import checkpointed, end_to_end_step, peak_bytes
from spela.bodies import build_body
from spela.conversion import convert
from spela.optim import LocalSGD

__all__ = ["BLOCK_COUNTS", "NETWORK_SIZES", "block_points"]

_LR = 0.01
_CLASSES = 10
_MICRO_BATCHES = 8
BLOCK_COUNTS: tuple[int | str, ...] = (1, 2, 3, 4, "layers")
# Name, width, batch: channels of the first convolution, on images of 3 x 32 x 32.
NETWORK_SIZES = (("vgg", 32, 128), ("resnet", 32, 128))
Step = Callable[[], object]


def _data(batch: int, pixels: int, device: str) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, pixels, pixels, generator=g)
    return x.to(device), (torch.arange(batch) % _CLASSES).to(device)


def _blocks(name: str, width: int, data: tuple[Tensor, Tensor], blocks: int | str) -> Step:
    x, target = data
    body = build_body(name, x.shape[1:], width, seed=0).to(x.device)
    channels = 64 if blocks == "layers" else 0  # as in the experiment `blocks`
    net = convert(body, _CLASSES, x[:2], blocks=blocks, channels=channels, hidden=256)
    optimizer = LocalSGD(net.parameters(), lr=_LR)
    return lambda: net.local_step(x, target, optimizer)


def _network(name: str, width: int, x: Tensor) -> nn.Sequential:
    body = build_body(name, x.shape[1:], width, seed=0)
    with torch.no_grad():
        features = body(torch.zeros(2, *x.shape[1:])).shape[1]
    return nn.Sequential(*body, nn.Linear(features, _CLASSES)).to(x.device)


def block_points(
    sizes: Iterable[tuple[str, int, int]] = NETWORK_SIZES,
    *,
    counts: Iterable[int | str] = BLOCK_COUNTS,
    pixels: int = 32,
    least: int = 5,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Peak memory and time of a step of each network and method, by SGD.

    Args:
        sizes: Name, width and batch of each network, as in `spela.bodies`.
        counts: Numbers of blocks, or "layers".
        pixels: Side of the images, which have three channels.
        least: Timed rounds, in which all methods take turns.
        device: cpu, or the current GPU.

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
        data = _data(batch, pixels, device)
        steps = {_method(count): _blocks(name, width, data, count) for count in counts}
        nets = [_network(name, width, data[0]) for _ in range(3)]
        steps["backprop"] = end_to_end_step(nets[0], *data)
        steps["checkpointing"] = end_to_end_step(nets[1], *data, forward=checkpointed)
        parts = min(_MICRO_BATCHES, batch // 2)  # batch norm wants two samples
        steps["accumulation"] = end_to_end_step(nets[2], *data, parts)
        gc.collect()
        peaks = {method: peak_bytes(step, device) for method, step in steps.items()}
        seconds = interleaved_medians(steps, 0.0, least, device)
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
