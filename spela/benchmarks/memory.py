"""Peak memory of one training step above what stays: ours against backprop and what people do to tame it.

Bytes are those that torch's CPU allocator hands out, followed one by one in the profiler's record; on a GPU
the caching allocator's peak. Weights, optimizer state and the batch stay and do not count.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint_sequential

from spela.benchmarks.network import NetworkCase
from spela.network import SpelaSequential
from spela.optim import LocalSGD

__all__ = ["MEMORY_VARIANTS", "peak_bytes"]

# The profiler's own log lines, which are about GPUs, would stand between the figures.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

_LR = 0.01
_MICRO_BATCHES = 8


def peak_bytes(step: Callable[[], object], device: str = "cpu") -> int:
    """Peak bytes that a warm step holds above what it started with.

    Args:
        step: Called twice, the second time watched.
        device: cpu or cuda.

    Returns:
        Bytes.

    Example:
        >>> peak_bytes(lambda: torch.empty(256))
        1024
    """
    step()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step()
    results = watched.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def _layers(case: NetworkCase) -> nn.Sequential:
    torch.manual_seed(0)
    blocks: list[nn.Module] = []
    for i, o in zip(case.sizes[:-1], case.sizes[1:], strict=True):
        blocks.append(nn.Sequential(nn.Linear(i, o), nn.LeakyReLU(1e-3)))
    blocks.append(nn.Linear(case.sizes[-1], case.classes))
    return nn.Sequential(*blocks).to(case.device)


def _spela(case: NetworkCase) -> Callable[[], object]:
    x, target = case.data()
    net: SpelaSequential = case.network()
    optimizer = LocalSGD(net.parameters(), lr=_LR)
    return lambda: net.local_step(x, target, optimizer)


def _plainly(net: nn.Module, x: Tensor) -> Tensor:
    return net(x)


def _checkpointed(net: nn.Module, x: Tensor) -> Tensor:
    """About sqrt(depth) segments, whose insides are computed again in the backward pass."""
    assert isinstance(net, nn.Sequential)
    segments = max(1, round(len(net) ** 0.5))
    return checkpoint_sequential(net, segments, x, use_reentrant=False)


def _backprop(
    case: NetworkCase, parts: int = 1, forward: Callable[[nn.Module, Tensor], Tensor] = _plainly
) -> Callable[[], object]:
    x, target = case.data()
    net = _layers(case)
    optimizer = torch.optim.SGD(net.parameters(), lr=_LR)

    def step() -> None:
        for rows, labels in zip(x.chunk(parts), target.chunk(parts), strict=True):
            (nn.functional.cross_entropy(forward(net, rows), labels) / parts).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _in_backward(case: NetworkCase, checkpointing: bool = False) -> Callable[[], object]:
    """Each parameter is stepped and its gradient freed as soon as the backward pass has made it."""
    x, target = case.data()
    net = _layers(case)
    for parameter in net.parameters():
        own = torch.optim.SGD([parameter], lr=_LR)

        def update(p: Tensor, own: torch.optim.Optimizer = own) -> None:
            own.step()
            own.zero_grad()

        parameter.register_post_accumulate_grad_hook(update)
    forward = _checkpointed if checkpointing else _plainly
    return lambda: nn.functional.cross_entropy(forward(net, x), target).backward()


MEMORY_VARIANTS: dict[str, Callable[[NetworkCase], Callable[[], object]]] = {
    "spela": _spela,
    "backprop": _backprop,
    "accumulation": lambda case: _backprop(case, parts=_MICRO_BATCHES),
    "checkpointing": lambda case: _backprop(case, forward=_checkpointed),
    "optimizer_in_backward": _in_backward,
    "both": lambda case: _in_backward(case, checkpointing=True),
}
