"""Activations on their way from one stage to the next: a few batches in flight, in order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

from spela.distributed.ranks import Pending, Ranks

__all__ = ["Inlet", "Outlet"]


# What activations may be in beside the wire's own dtype: autocast's.
_SHORT = (torch.bfloat16, torch.float16)


def _to_wire(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Flat memory for the transfer; its last number says the order of axes in memory, and the dtype.

    The order decides which kernel the next convolution takes, and so its rounding; under autocast some
    layers' outputs are in 16 bits.

    Raises:
        ValueError: If the wire's dtype cannot hold x.
    """
    if x.dtype != dtype and x.dtype not in _SHORT:
        raise ValueError(f"a stage gives {x.dtype}, which cannot be passed on as {dtype}")
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    last = last and not x.is_contiguous()
    flat = (x.permute(0, 2, 3, 1) if last else x).flatten()
    kind = 0 if x.dtype == dtype else 1 + _SHORT.index(x.dtype)
    return torch.cat([flat.to(dtype), flat.new_full((1,), 2 * kind + last, dtype=dtype)])


def _from_wire(wire: Tensor, shape: tuple[int, ...]) -> Tensor:
    kind, last = divmod(int(wire[-1]), 2)
    flat = wire[:-1].to(_SHORT[kind - 1]) if kind else wire[:-1]
    if not last:
        return flat.view(shape)
    samples, kernels, height, width = shape
    return flat.view(samples, height, width, kernels).permute(0, 3, 1, 2)


class Outlet:
    """Sends activations to the next stage without waiting for it.

    Args:
        ranks: The processes of the job.
        depth: Batches that may be under way before `put` waits for the oldest.
        dtype: Of the transfer.
    """

    def __init__(self, ranks: Ranks, depth: int, dtype: torch.dtype) -> None:
        self.ranks = ranks
        self.depth = depth
        self.dtype = dtype
        self._sent: deque[Pending] = deque()

    def put(self, x: Tensor) -> None:
        """Send a copy of x."""
        while len(self._sent) >= self.depth:
            self._sent.popleft().wait()
        self._sent.append(self.ranks.start_send(_to_wire(x, self.dtype), self.ranks.rank + 1))

    def flush(self) -> None:
        """Wait until all has arrived."""
        while self._sent:
            self._sent.popleft().wait()


class Inlet:
    """Receives activations from the stage before, ahead of time where the sizes are known.

    Args:
        ranks: The processes of the job.
        depth: Batches that may be received ahead.
        shape: Of one sample's activations.
        dtype: Of the transfer.
    """

    def __init__(
        self, ranks: Ranks, depth: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self.ranks = ranks
        self.depth = depth
        self.dtype = dtype
        self.shape = shape
        self._expected: deque[int] = deque()
        self._coming: deque[tuple[int, Pending]] = deque()

    def expect(self, sizes: Iterable[int]) -> None:
        """Say how many samples the next batches have."""
        self._expected.extend(sizes)
        self._post()

    def _post(self) -> None:
        while self._expected and len(self._coming) < self.depth:
            size = self._expected.popleft()
            numbers = size * math.prod(self.shape) + 1
            buffer = torch.empty(numbers, dtype=self.dtype, device=self.ranks.device)
            self._coming.append((size, self.ranks.start_receive(buffer, self.ranks.rank - 1)))

    def take(self, size: int) -> Tensor:
        """The next batch of activations, (size, ...).

        Raises:
            ValueError: If another size was expected next.
        """
        if not self._coming:
            self.expect([size])
        expected, coming = self._coming.popleft()
        if expected != size:
            raise ValueError(f"a batch of {expected} samples was expected next, got one of {size}")
        x = _from_wire(coming.wait(), (size, *self.shape))
        self._post()
        return x
