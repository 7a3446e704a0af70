"""A bounded memory of past samples, so that what was learnt first is not forgotten."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

__all__ = ["ReplayBuffer"]

POLICIES = ("balanced", "reservoir")
# Rows to make room for at first; room doubles as it fills, so a large capacity costs nothing until used.
FIRST_ROOM = 64


def _unlike(x: Tensor, kept: Tensor) -> ValueError:
    return ValueError(
        f"`x` has samples of shape {tuple(x.shape[1:])} {x.dtype}, the stream so far "
        f"{tuple(kept.shape[1:])} {kept.dtype}: pass all samples alike"
    )


class ReplayBuffer:
    """At most `capacity` samples of a stream, kept so that they stand for all of it.

    "balanced" gives every class the same room, however rare it is: a sample of a class that was never the
    largest replaces one of the largest class; a class that was, keeps a uniform sample of its own past
    (class-balancing reservoir sampling, Chrysakis and Moens, ICML 2020). "reservoir" keeps a uniform
    sample of the whole stream (Vitter's algorithm R, 1985), in which rare classes are rare.

    Args:
        capacity: Most samples to keep; 0: none.
        policy: balanced or reservoir.
        generator: CPU source of all choices; None: one of its own, seeded with 0.

    Raises:
        ValueError: If the capacity is negative or the policy unknown.
        TypeError: If the capacity is not a whole number.

    Example:
        >>> buffer = ReplayBuffer(3)
        >>> buffer.add(torch.arange(10.0)[:, None], torch.tensor([0] * 9 + [1]))
        >>> len(buffer), sorted(buffer.y.tolist())
        (3, [0, 0, 1])
    """

    def __init__(
        self,
        capacity: int,
        policy: str = "balanced",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        capacity = operator.index(capacity)
        if capacity < 0:
            raise ValueError(f"`capacity` must be 0 or more, got {capacity}")
        if policy not in POLICIES:
            raise ValueError(f"unknown policy {policy!r}: use one of {', '.join(POLICIES)}")
        self.capacity = capacity
        self.policy = policy
        self.generator = generator or torch.Generator().manual_seed(0)
        self.seen: list[int] = []  # samples met, a class each
        self._was_largest: list[bool] = []
        self._room_x: Tensor | None = None
        self._room_y: Tensor | None = None
        self._size = 0

    def __len__(self) -> int:
        """Samples kept."""
        return self._size

    @property
    def x(self) -> Tensor:
        """(N, ...) samples kept, in the dtype they came in."""
        return torch.empty(0, device="cpu") if self._room_x is None else self._room_x[: self._size]

    @property
    def y(self) -> Tensor:
        """(N,) int64 class indices of the samples kept."""
        if self._room_y is None:
            return torch.empty(0, dtype=torch.int64, device="cpu")
        return self._room_y[: self._size]

    def check(self, x: Tensor) -> None:
        """Refuse samples that do not go with those kept.

        Args:
            x: (B, ...) samples.

        Raises:
            ValueError: If their shape or dtype differs.
        """
        self.check_shape(x)
        kept = self._room_x
        if kept is not None and x.dtype != kept.dtype:
            raise _unlike(x, kept)

    def check_shape(self, x: Tensor) -> None:
        """As `check`, of the shape alone: floats of another width are answered as well."""
        kept = self._room_x
        if kept is not None and x.shape[1:] != kept.shape[1:]:
            raise _unlike(x, kept)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Offer samples, one after the other.

        Args:
            x: (B, ...) samples, alike in shape and dtype over the whole stream.
            y: (B,) int64 class indices, 0 or more.

        Raises:
            ValueError: As `check`, or if labels are not these; nothing is remembered then.
        """
        self.check(x)
        if y.dtype != torch.int64 or y.shape != x.shape[:1] or (len(y) and int(y.min()) < 0):
            raise ValueError(
                f"`y` must be {len(x)} int64 class indices, 0 or more; got {tuple(y.shape)} {y.dtype}"
            )
        x = x.detach()
        for row, label in enumerate(y.tolist()):
            missing = label + 1 - len(self.seen)
            self.seen += [0] * missing
            self._was_largest += [False] * missing
            self.seen[label] += 1
            slot = self._slot(label)
            if slot is not None:
                self._put(slot, x[row], label)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw samples without repeating one.

        Args:
            count: How many; all that there are, if they are fewer.

        Returns:
            x (N, ...), y (N,): copies.
        """
        rows = torch.randperm(self._size, generator=self.generator, device="cpu")[:count]
        return self.x[rows.to(self.x.device)], self.y[rows.to(self.y.device)]

    def _draw(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self.generator, device="cpu"))

    def _slot(self, label: int) -> int | None:
        """Where a new sample goes; None: nowhere."""
        if self._size < self.capacity:
            return self._size
        if self.capacity == 0:
            return None
        if self.policy == "reservoir":
            slot = self._draw(sum(self.seen))
            return slot if slot < self.capacity else None
        counts = self.y.bincount(minlength=len(self.seen))
        largest = int(counts.argmax())
        for index in (counts == counts[largest]).nonzero()[:, 0].tolist():
            self._was_largest[index] = True
        if not self._was_largest[label]:
            return self._one_of(largest, int(counts[largest]))
        kept = int(counts[label])
        return self._one_of(label, kept) if self._draw(self.seen[label]) < kept else None

    def _one_of(self, label: int, count: int) -> int:
        return int((self.y == label).nonzero()[self._draw(count), 0])

    def _put(self, slot: int, x: Tensor, label: int) -> None:
        if self._room_x is None or self._room_y is None:
            room = min(FIRST_ROOM, self.capacity)
            self._room_x = x.new_empty((room, *x.shape))
            self._room_y = torch.empty(room, dtype=torch.int64, device=x.device)
        elif slot == len(self._room_y):
            more = min(len(self._room_y), self.capacity - len(self._room_y))
            self._room_x = torch.cat([self._room_x, self._room_x[:more]])
            self._room_y = torch.cat([self._room_y, self._room_y[:more]])
        self._room_x[slot], self._room_y[slot] = x, label
        self._size = max(self._size, slot + 1)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, besides the generator's state."""
        return {
            "x": self.x.cpu().contiguous(),
            "y": self.y.cpu(),
            "seen": torch.tensor(self.seen, dtype=torch.int64, device="cpu"),
            "was_largest": torch.tensor(self._was_largest, dtype=torch.bool, device="cpu"),
        }

    def load_state(self, state: dict[str, Tensor], device: torch.device) -> None:
        """The inverse of `state`.

        Args:
            state: From a buffer of the same capacity and policy.
            device: Where samples live from now on.

        Raises:
            ValueError: If the parts do not fit each other or the capacity.
        """
        x, y, seen, was = (state[name] for name in ("x", "y", "seen", "was_largest"))
        classes = len(seen)
        if not (
            x.ndim >= 1
            and y.shape == x.shape[:1]
            and y.dtype == seen.dtype == torch.int64
            and seen.shape == was.shape == (classes,)
            and len(y) <= self.capacity
            and (len(y) == 0 or 0 <= int(y.min()) <= int(y.max()) < classes)
            and bool((seen >= y.bincount(minlength=classes)).all())
        ):
            raise ValueError("the replay buffer's parts do not fit each other")
        self.seen, self._was_largest = seen.tolist(), was.bool().tolist()
        self._size = len(y)
        self._room_x, self._room_y = (x.to(device), y.to(device)) if len(y) else (None, None)
