"""Times of a step on a GPU: call after call, as a CUDA graph, and as a graph after the L2 was overwritten."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.gpu.rows import Rows
from bench.gpu.setting import Setting
from spela_kernels.cost.roofline import GPUS, Gpu
from spela_kernels.proof.meters import measure_memory, measure_us, replayed

__all__ = [
    "Times",
    "add_times",
    "cold_us",
    "copy_gbs",
    "find_card",
    "flush_buffer",
    "release_memory",
    "tf32",
    "times_of",
    "warm_us",
]

Step = Callable[[], object]
_FLUSH_BYTES = 2**29  # more than any cache
_COPY_BYTES = 2**31


class Times(NamedTuple):
    """Of one step; microseconds and bytes.

    Attributes:
        eager: Call after call, the CPU's share included where it is the slower one.
        replayed: As a CUDA graph, replay after replay; None where it was not captured.
        cold: A single replay (or, uncaptured, a call) after the L2 was overwritten.
        peak_bytes: Above what stays.
        note: Why there is no graph; else empty.
    """

    eager: float
    replayed: float | None
    cold: float
    peak_bytes: int
    note: str

    @property
    def best(self) -> float:
        """The faster of eager and replayed."""
        return self.eager if self.replayed is None else min(self.eager, self.replayed)


def flush_buffer(setting: Setting) -> Tensor:
    """What is overwritten to empty the L2."""
    size = setting.pick(_FLUSH_BYTES, 1024)
    return torch.empty(size, dtype=torch.uint8, device=setting.device)


def warm_us(run: Step, repeats: int) -> float:
    """Time of one of several runs without a pause, in microseconds."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    run()
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * start.elapsed_time(end) / repeats


def cold_us(run: Step, flush: Tensor, repeats: int) -> float:
    """Median time of runs, each after `flush` was written, which is not counted; microseconds."""
    pairs = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repeats)
    ]
    for start, end in pairs:
        flush.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return 1e3 * statistics.median(start.elapsed_time(end) for start, end in pairs)


def times_of(step: Step, flush: Tensor, setting: Setting, capture: bool = True) -> Times:
    """Every time of a step, and its peak memory.

    Args:
        step: Called again and again.
        flush: From `flush_buffer`.
        setting: Says how often.
        capture: Whether it is timed as a CUDA graph too; a step that replays one of its own is not.
    """
    eager = measure_us(step, setting.pick(10, 0), setting.pick(50, 1))
    peak = measure_memory(step)
    captured, note = step, ""
    try:
        captured = replayed(step) if capture else step
    except Exception as error:  # a step that cannot be captured is timed as it is
        first = (str(error).splitlines() or [""])[0]
        note = f"no graph: {type(error).__name__}: {first[:120]}"
        torch.cuda.synchronize()
    replay = None if note or not capture else warm_us(captured, setting.pick(100, 1))
    return Times(eager, replay, cold_us(captured, flush, setting.pick(20, 1)), peak, note)


def copy_gbs(setting: Setting) -> float:
    """Bandwidth of a large copy on the device, read and written bytes together, in GB/s."""
    half = setting.pick(_COPY_BYTES, 4096) // 4
    source, target = (
        torch.ones(half, dtype=torch.float32, device=setting.device) for _ in range(2)
    )
    us = warm_us(lambda: target.copy_(source), setting.pick(10, 1))
    return 2 * 4 * half / us / 1e3


def release_memory() -> None:
    """Give cached memory back; torch up to 2.11 cannot any more once a capture was invalidated."""
    with suppress(RuntimeError):
        torch.cuda.empty_cache()


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether torch's float32 products may be TF32's within the block, which they are not by default."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


_OTHERS = {"PCIE", "NVL", "40GB", "64GB", "96GB", "MIG"}


def find_card() -> Gpu | None:
    """The published figures of the card at hand; None where the table lacks it.

    The table has the SXM parts: those for PCIe and with less memory are slower under the same name, and a
    slice of a card has a part of its bandwidth.
    """
    words = torch.cuda.get_device_name().upper().replace("-", " ").split()
    if not _OTHERS.isdisjoint(words):
        return None
    return next((gpu for name, gpu in GPUS.items() if name.upper() in words), None)


def add_times(
    rows: Rows,
    table: str,
    cells: dict[str, Any],
    make: Callable[[], Step],
    flush: Tensor,
    setting: Setting,
    figures: Callable[[Times], dict[str, Any]] = lambda times: {},
    capture: bool = True,
) -> Times | None:
    """Time a step into a row; one that cannot be made or run is a row that says why.

    Args:
        rows: Where to.
        table: Its name.
        cells: What is in the row besides.
        make: Makes the step.
        flush: From `flush_buffer`.
        setting: Says how often.
        figures: Further cells, from the times.
        capture: As in `times_of`.

    Returns:
        The times; None where there are none.
    """
    try:
        times = times_of(make(), flush, setting, capture)
        further = figures(times)
    except Exception as error:  # whatever a GPU or a compiler raises belongs in the report
        rows.failed(table, error, **cells)
        return None
    us = {"eager_us": times.eager, "replayed_us": times.replayed, "cold_us": times.cold}
    rows.add(table, **cells, **us, **further, peak_mb=times.peak_bytes / 1e6, note=times.note)
    return times
