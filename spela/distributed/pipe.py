"""Activations on their way from one stage to the next: a few batches in flight, in order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

from spela.distributed.ranks import Pending, Ranks

__all__ = ["Inlet", "Outlet"]


def _to_wire(x: Tensor) -> Tensor:
    """Contiguous memory for the transfer; maps (B, K, H, W) flat, and last whether channels are last.

    The order of axes in memory is passed on, because it decides which kernel the next convolution takes,
    and so its rounding.
    """
    if x.dim() != 4:
        return x.contiguous()
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    flat = (x.permute(0, 2, 3, 1) if last else x).flatten()
    return torch.cat([flat, flat.new_full((1,), float(last))])


def _from_wire(wire: Tensor, shape: tuple[int, ...]) -> Tensor:
    if len(shape) != 4:
        return wire
    samples, kernels, height, width = shape
    if wire[-1] == 0:
        return wire[:-1].view(shape)
    return wire[:-1].view(samples, height, width, kernels).permute(0, 3, 1, 2)


class Outlet:
    """Sends activations to the next stage without waiting for it.

    Args:
        ranks: The processes of the job.
        depth: Batches that may be under way before `put` waits for the oldest.
    """

    def __init__(self, ranks: Ranks, depth: int) -> None:
        self.ranks = ranks
        self.depth = depth
        self._sent: deque[Pending] = deque()

    def put(self, x: Tensor) -> None:
        """Send x, which must not be written to until it has arrived."""
        while len(self._sent) >= self.depth:
            self._sent.popleft().wait()
        self._sent.append(self.ranks.start_send(_to_wire(x), self.ranks.rank + 1))

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
        dtype: Theirs.
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
            maps = len(self.shape) == 3
            wire = (size * math.prod(self.shape) + 1,) if maps else (size, *self.shape)
            buffer = torch.empty(wire, dtype=self.dtype, device=self.ranks.device)
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
