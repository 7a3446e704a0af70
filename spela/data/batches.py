"""Mini-batches cut from tensors that already lie on the training device."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from spela.data.prepare import prepare

__all__ = ["Batches", "epoch_generator", "gather"]

_NO_GENERATOR = "shuffle=True needs a generator, e.g. epoch_generator(seed, epoch)"
_NUMPY = (torch.uint8, torch.float32, torch.float64, torch.int64)


class Batches:
    """Iterate over (inputs, labels) mini-batches; each iteration is one epoch.

    Shuffled batches gather rows by one permutation drawn from `generator` when the iteration
    starts, and from nothing else: seed it from (seed, epoch), as `epoch_generator` does, and any
    epoch can be repeated alone. Without shuffling, batches are slices in order, and float32
    inputs and labels are views of `x` and `y`: do not write into them.

    Args:
        x: (N, ...) uint8 or float, the raw samples; converted batch by batch with `prepare`.
        y: (N,) int64 labels on the device of x.
        batch_size: samples a batch, at least 1; the last batch may be shorter.
        shuffle: draw a new order for every iteration.
        generator: where the order comes from; required with shuffle. A CPU generator gives the
            same order on every device.
        augment: what is done to each batch of raw samples before it is converted; None: nothing.

    Raises:
        TypeError: x or y is not a tensor, or batch_size no whole number.
        ValueError: unequal lengths or devices, no samples, batch_size below 1, or shuffle without a
            generator.

    Example:
        >>> x, y = torch.arange(5.0)[:, None], torch.arange(5)
        >>> [labels.tolist() for _, labels in Batches(x, y, 2, shuffle=False)]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        *,
        shuffle: bool,
        generator: torch.Generator | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            raise TypeError(f"x and y must be tensors, got {type(x).__name__}, {type(y).__name__}")
        if y.ndim != 1 or x.ndim < 1 or len(x) != len(y) or len(y) == 0:
            raise ValueError(
                "x and y must hold the same number of samples, at least one, with y of shape (N,); "
                f"got x {tuple(x.shape)} and y {tuple(y.shape)}"
            )
        if x.device != y.device:
            raise ValueError(f"x and y must be on one device, got {x.device} and {y.device}")
        batch_size = operator.index(batch_size)  # NumPy's integers too
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if shuffle and generator is None:
            raise ValueError(_NO_GENERATOR)
        self.x = x
        self.y = y
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.generator = generator
        self.augment = augment

    def __len__(self) -> int:
        """The number of batches in one epoch."""
        return -(-len(self.y) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Drawn here and not at the first batch, so that the order of draws is that of iter() calls.
        return self._shuffled(self._draw()) if self.shuffle else self._in_order()

    def _draw(self) -> Tensor:
        if self.generator is None:
            raise ValueError(_NO_GENERATOR)
        device = self.generator.device
        order = torch.randperm(len(self.y), generator=self.generator, device=device)
        return order.to(self.y.device)

    def _shuffled(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for index in order.split(self.batch_size):
            yield self._inputs(gather(self.x, index)), gather(self.y, index)

    def _in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.y), self.batch_size):
            stop = start + self.batch_size
            yield self._inputs(self.x[start:stop]), self.y[start:stop]

    def _inputs(self, x: Tensor) -> Tensor:
        return prepare(x if self.augment is None else self.augment(x))


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x: on the CPU by NumPy, whose copy waits for no threads where other processes hold the cores.

    Args:
        x: (N, ...) of any dtype.
        index: (B,) int64 from 0 to N - 1, which is not checked; on the CPU or the device of x.

    Returns:
        (B, ...), a copy.

    Example:
        >>> gather(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 0]))
        tensor([3., 1.])
    """
    if x.device.type != "cpu" or x.dtype not in _NUMPY or x.requires_grad:
        return x.index_select(0, index.to(x.device))
    rows = x.new_empty((len(index), *x.shape[1:]))
    # "raise" would copy through a buffer to check the indices.
    np.take(x.numpy(), index.numpy(), axis=0, out=rows.numpy(), mode="clip")
    return rows


def epoch_generator(seed: int, epoch: int, *stream: int) -> torch.Generator:
    """A CPU generator that depends only on (seed, epoch), so that a resumed epoch is the same.

    Args:
        seed: the run's seed, at least 0.
        epoch: the epoch's number, at least 0.
        *stream: numbers that tell apart several generators of one epoch.

    Example:
        >>> draws = [torch.randperm(9, generator=epoch_generator(0, 3)) for _ in range(2)]
        >>> torch.equal(*draws)
        True
    """
    # SeedSequence mixes both numbers: seed + epoch would give (0, 1) and (1, 0) the same order.
    state = np.random.SeedSequence((seed, epoch, *stream)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
