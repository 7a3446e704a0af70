"""Peak memory of one training step above what stays: ours, backprop's, and its memory-saving variants'.

Bytes are those that torch's CPU allocator hands out, followed one by one in the profiler's record; on a GPU
the caching allocator's peak. Weights, optimizer state and the batch stay and do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint_sequential
from torch.utils.flop_counter import FlopCounterMode

from spela.benchmarks.clock import interleaved_medians
from spela.benchmarks.network import NetworkCase
from spela.benchmarks.resident import peak_resident_bytes, restart_peak
from spela.network import SpelaSequential
from spela.optim import LocalSGD
from spela.process import seeded, variable_set
from spela_kernels.proof.meters import measure_memory

__all__ = [
    "MEMORY_VARIANTS",
    "SHAPES",
    "checkpointed",
    "end_to_end_step",
    "memory_points",
    "peak_bytes",
    "resident_bytes_of",
    "step_multiply_adds",
]

_LR = 0.01
_MICRO_BATCHES = 8


def peak_bytes(step: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Peak bytes that a warm step holds above what it started with.

    Args:
        step: Called twice, the second time watched.
        device: cpu, or the current GPU.

    Returns:
        Bytes.

    Example:
        >>> peak_bytes(lambda: torch.empty(256))
        1024
    """
    if torch.device(device).type != "cpu":
        return measure_memory(step)
    step()
    # The profiler's own log lines, which are about GPUs, would stand between the figures.
    with (
        variable_set("KINETO_LOG_LEVEL", "99"),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched,
    ):
        step()
    results = watched.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def _local_step_flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """Two products, forward and weight gradient; objectives of the label's cosine have no others."""
    return 2 * 2 * x[0] * weight.numel()


def step_multiply_adds(step: Callable[[], object]) -> int:
    """Multiply-adds of a training step's matrix products, by the formulas of torch.utils.flop_counter.

    Args:
        step: Called once. Of SPELA's steps `LocalSGD`'s on linear layers is known.

    Example:
        >>> step_multiply_adds(lambda: torch.ones(2, 3) @ torch.ones(3, 4))
        24
    """
    formulas = {torch.ops.spela.linear_sgd_: _local_step_flops}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        step()
    return counter.get_total_flops() // 2


def _layers(case: NetworkCase) -> nn.Sequential:
    blocks: list[nn.Module] = []
    with seeded(0, torch.device("cpu")):
        for i, o in zip(case.sizes[:-1], case.sizes[1:], strict=True):
            # In place: its slope follows from its output, which the next layer keeps anyway.
            blocks.append(nn.Sequential(nn.Linear(i, o), nn.LeakyReLU(1e-3, inplace=True)))
        blocks.append(nn.Linear(case.sizes[-1], case.classes))
    return nn.Sequential(*blocks).to(case.device)


def _spela(case: NetworkCase) -> Callable[[], object]:
    x, target = case.data()
    net: SpelaSequential = case.network()
    optimizer = LocalSGD(net.parameters(), lr=_LR)
    return lambda: net.local_step(x, target, optimizer)


def _plainly(net: nn.Sequential, x: Tensor) -> Tensor:
    return net(x)


def checkpointed(net: nn.Sequential, x: Tensor) -> Tensor:
    """A network's forward in about sqrt(depth) segments, whose insides the backward pass computes again.

    Args:
        net: Of modules.
        x: Its input.
    """
    segments = max(1, round(len(net) ** 0.5))
    return checkpoint_sequential(net, segments, x, use_reentrant=False)


def _backprop(
    case: NetworkCase, parts: int = 1, forward: Callable[[nn.Sequential, Tensor], Tensor] = _plainly
) -> Callable[[], object]:
    return end_to_end_step(_layers(case), *case.data(), parts, forward)


def end_to_end_step(
    net: nn.Sequential,
    x: Tensor,
    target: Tensor,
    parts: int = 1,
    forward: Callable[[nn.Sequential, Tensor], Tensor] = _plainly,
) -> Callable[[], object]:
    """A step of backprop by SGD: cross-entropy of the network's output, one update.

    Args:
        net: Of modules.
        x: (B, ...) batch.
        target: (B,) labels.
        parts: Pieces of the batch whose gradients are accumulated.
        forward: How a piece goes through the network.
    """
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
    forward = checkpointed if checkpointing else _plainly
    return lambda: nn.functional.cross_entropy(forward(net, x), target).backward()


MEMORY_VARIANTS: dict[str, Callable[[NetworkCase], Callable[[], object]]] = {
    "spela": _spela,
    "backprop": _backprop,
    "accumulation": lambda case: _backprop(case, parts=_MICRO_BATCHES),
    "checkpointing": lambda case: _backprop(case, forward=checkpointed),
    "optimizer_in_backward": _in_backward,
    "both": lambda case: _in_backward(case, checkpointing=True),
}


def _growth(step: Callable[[], object]) -> int:
    restart_peak()
    before = peak_resident_bytes()
    step()
    return peak_resident_bytes() - before


def _resident(variant: str, case: NetworkCase) -> int:
    MEMORY_VARIANTS[variant](NetworkCase((8, 8, 8), 4))()  # loads the libraries
    # The first step: in a later one, what the allocator has kept of it would not show.
    return _growth(MEMORY_VARIANTS[variant](case))


def resident_bytes_of(variant: str, case: NetworkCase) -> int:
    """Peak of a new process's resident memory in its first step, above what it had; Linux only."""
    with get_context("spawn").Pool(1) as pool:
        return int(pool.apply(_resident, (variant, case)))


# Layers and their width, at batch 512: against depth, and against width.
SHAPES = (
    *((depth, 1024) for depth in (2, 4, 8, 16, 32)),
    *((8, width) for width in (256, 512, 2048, 4096)),
)


def memory_points(
    shapes: Iterable[tuple[int, int]] = SHAPES, *, batch: int = 512, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Peak memory and time of a step.

    Args:
        shapes: Number of layers and their width.
        batch: Samples a step.
        device: cpu, or the current GPU.

    Returns:
        One {"method", "depth", "width", "peak_bytes", "step_ms", "multiply_adds"} a variant and network.

    Example:
        >>> points = memory_points([(2, 8)])
        >>> {p["method"] for p in points} == set(MEMORY_VARIANTS)
        True
    """
    points = []
    for depth, width in shapes:
        steps = {
            name: make(NetworkCase((width,) * (depth + 1), batch, device=device))
            for name, make in MEMORY_VARIANTS.items()
        }
        peaks = {name: peak_bytes(step, device) for name, step in steps.items()}
        seconds = interleaved_medians(steps, 0.0, 3, device)
        points += [
            {
                "method": name,
                "depth": depth,
                "width": width,
                "peak_bytes": peaks[name],
                "step_ms": 1e3 * seconds[name],
                "multiply_adds": step_multiply_adds(steps[name]),
            }
            for name in steps
        ]
    return points
