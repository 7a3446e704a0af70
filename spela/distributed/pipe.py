"""Activations on their way from one stage to the next: a few batches in flight, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

from spela.distributed.ranks import Pending, Ranks

__all__ = ["Inlet", "Outlet"]


def _wire(x: Tensor) -> Tensor:
    """Contiguous memory for the transfer: convolutions leave, and expect, their channels last."""
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).contiguous()


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
        """Send x, which must not change any more."""
        while len(self._sent) >= self.depth:
            self._sent.popleft().wait()
        self._sent.append(self.ranks.start_send(_wire(x), self.ranks.rank + 1))

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
        self.shape = (*shape[1:], shape[0]) if len(shape) == 3 else shape
        self._expected: deque[int] = deque()
        self._coming: deque[Pending] = deque()

    def expect(self, sizes: Iterable[int]) -> None:
        """Say how many samples the next batches have."""
        self._expected.extend(sizes)
        self._post()

    def _post(self) -> None:
        while self._expected and len(self._coming) < self.depth:
            shape = (self._expected.popleft(), *self.shape)
            buffer = torch.empty(shape, dtype=self.dtype, device=self.ranks.device)
            self._coming.append(self.ranks.start_receive(buffer, self.ranks.rank - 1))

    def take(self, size: int) -> Tensor:
        """The next batch of activations, (size, ...).

        Raises:
            ValueError: If another size was expected next.
        """
        if not self._coming:
            self.expect([size])
        x = self._coming.popleft().wait()
        self._post()
        if len(x) != size:
            raise ValueError(f"a batch of {len(x)} samples was expected next, got one of {size}")
        return x.permute(0, 3, 1, 2) if x.dim() == 4 else x
