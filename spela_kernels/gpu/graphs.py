"""CUDA graphs: what a GPU is asked to do, captured once and replayed without the CPU's share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

__all__ = ["capture", "host_waits"]

_Result = TypeVar("_Result")
_WAITED = "synchronizing CUDA operation"  # of torch's warning
_MODE = "Synchronization debug mode"  # of another, about the mode itself


def capture(
    run: Callable[[], _Result],
    device: torch.device | None = None,
    stream: torch.cuda.Stream | None = None,
) -> tuple[Callable[[], None], _Result]:
    """Capture what a function launches; nothing is computed yet.

    Args:
        run: Has run before, so that all is compiled, and must not wait for the GPU.
        device: Where it launches; None: the current GPU.
        stream: To capture on, of that GPU: what `torch.compile` made has to have run on the same one; None: a
            new one.

    Returns:
        The replay, which makes the same launches on the same memory, on the current stream; and what `run`
        returned, in the graph's own memory: every replay writes there anew.

    Raises:
        RuntimeError: If something cannot be captured; nothing was computed.

    Source: torch.cuda.graph.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        # The current stream is put back here, which torch does not do after a failed capture. The other one
        # is of this GPU, where torch's own is of whichever came first. Threads that pin batches may go on.
        current, side = (
            torch.cuda.stream(torch.cuda.current_stream()),
            stream or torch.cuda.Stream(),
        )
        with current, torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            result = run()
    return graph.replay, result


@contextmanager
def host_waits() -> Iterator[list[str]]:
    """Find where Python waits for the GPU, which a capture does not survive.

    A failed capture leaves torch's random generator unusable, so this is found out beforehand.

    Yields:
        A list that holds, after the block, the file and line of every wait that torch knows of.

    Source: torch.cuda.set_sync_debug_mode.
    """
    found: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        text, place = str(warning.message), (warning.filename, warning.lineno)
        if _WAITED in text:
            found.append("{}:{}".format(*place))
        elif _MODE not in text:  # somebody else's
            warnings.warn_explicit(text, warning.category, *place)
