"""The processes of a job, and everything they say to each other: the one file that calls torch.distributed.

Nothing is pickled: tensors travel as they are, facts as JSON, named tensors as safetensors.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["LostRankError", "Pending", "Ranks", "Share"]

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class LostRankError(ConnectionError):
    """Another process of the job ended, or does not answer."""


@dataclass(frozen=True)
class Share:
    """A process's part of a joint batch.

    Attributes:
        rows: Its rows.
        total: Rows of the joint batch.
        weight: Its part in a mean over the joint batch; all processes' weights sum to 1.
        whole: Whether every process has all rows (there are fewer rows than processes).
    """

    rows: slice
    total: int
    weight: float
    whole: bool


@dataclass(frozen=True)
class Pending:
    """A transfer under way."""

    ranks: Ranks
    work: Any
    tensor: Tensor

    def wait(self) -> Tensor:
        """The tensor, when the transfer is done.

        Raises:
            LostRankError: If the other side is gone.
        """
        with self.ranks.guard():
            self.work.wait()
        return self.tensor


@dataclass(frozen=True)
class Ranks:
    """This process's place among those of the job.

    Attributes:
        rank: Number of this process, from 0; rank 0 writes the run folder.
        size: Processes of the job.
        device: Where this process computes.
        timeout: Seconds after which a silent rank counts as lost.

    Example:
        >>> Ranks(1, 2, torch.device("cpu"), 60).share(5)
        Share(rows=slice(2, 5, None), total=5, weight=0.6, whole=False)
    """

    rank: int
    size: int
    device: torch.device
    timeout: float

    @classmethod
    def join(cls, device: str = "auto", timeout: float = 600.0) -> Ranks:
        """Join the job that torchrun describes in the environment.

        Args:
            device: cpu (gloo), cuda (nccl, the GPU of the process's local rank), or auto.
            timeout: Seconds after which a silent rank counts as lost.

        Raises:
            ValueError: If torchrun did not start this process, or the device cannot be used.
            LostRankError: If the other processes do not come.
        """
        missing = [name for name in ENVIRONMENT if name not in os.environ]
        if missing:
            raise ValueError(
                f"--parallel needs processes ({', '.join(missing)} not set): start it with "
                "torchrun --nproc-per-node 2 -m spela train --parallel ..."
            )
        kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        if kind not in ("cpu", "cuda"):
            raise ValueError(f"--parallel runs on --device cpu, cuda or auto, got {device!r}")
        local, ranks_size = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
        if kind == "cuda":
            if local >= torch.cuda.device_count():
                raise ValueError(
                    f"process {local} of this machine has no GPU of its own (there are "
                    f"{torch.cuda.device_count()}): start fewer processes or use --device cpu"
                )
            torch.cuda.set_device(local)
        where = torch.device("cuda", local) if kind == "cuda" else torch.device("cpu")
        ranks = cls(int(os.environ["RANK"]), ranks_size, where, timeout)
        with ranks.guard():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
                rank=ranks.rank,
                world_size=ranks.size,
                timeout=timedelta(seconds=timeout),
            )
        return ranks

    def leave(self) -> None:
        """Say goodbye, when all have done their part."""
        with self.guard():
            dist.barrier()
            dist.destroy_process_group()

    def claim(self, what: str) -> bool:
        """Whether this process is the first that asks for `what`; true where nobody can tell."""
        try:
            store = dist.distributed_c10d._get_default_store()
            return bool(store.add(f"spela/{what}", 1) == 1)
        except (RuntimeError, ValueError):  # the process that kept the list is gone
            return True

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder and speaks."""
        return self.rank == 0

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn what torch.distributed says of a broken connection into `LostRankError`."""
        try:
            yield
        except RuntimeError as error:  # gloo raises no narrower class
            # Without the place in gloo's source that its messages begin with.
            reason = re.sub(r"^\[[^]]*\.cc:\d+\] ", "", str(error)).strip()
            other = f"rank {1 - self.rank} is lost" if self.size == 2 else "another rank is lost"
            raise LostRankError(
                f"{other}: killed, cut off, or silent for {self.timeout:g} s; go on from the last "
                f"finished epoch with the same command and --resume "
                f"(rank {self.rank} heard: {reason[:80]})"
            ) from None

    def share(self, total: int) -> Share:
        """This process's part of a batch: contiguous rows, as equal as can be.

        Args:
            total: Rows of the joint batch.

        Returns:
            A `Share`; with fewer rows than processes, all rows with a weight of 1 / size.
        """
        if total < self.size:
            return Share(slice(0, total), total, 1 / self.size, True)
        start, stop = (total * r // self.size for r in (self.rank, self.rank + 1))
        return Share(slice(start, stop), total, (stop - start) / total, False)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        return self.start_sum(tensor).wait()

    def start_sum(self, tensor: Tensor) -> Pending:
        """Begin summing over all processes, in place; `wait` ends it."""
        with self.guard():
            return Pending(self, dist.all_reduce(tensor, async_op=True), tensor)

    def stack(self, tensor: Tensor) -> Tensor:
        """Every process's tensor (of one shape), stacked in the order of ranks."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with self.guard():
            dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with rank 0's."""
        for tensor in tensors:
            with self.guard():
                dist.broadcast(tensor, 0)

    def start_send(self, tensor: Tensor, to: int) -> Pending:
        """Begin sending a contiguous tensor, which must stay as it is until `wait` is done."""
        with self.guard():
            return Pending(self, dist.isend(tensor, to), tensor)

    def start_receive(self, tensor: Tensor, source: int) -> Pending:
        """Begin receiving into a contiguous tensor."""
        with self.guard():
            return Pending(self, dist.irecv(tensor, source), tensor)

    def from_main(self, call: Callable[[], Any]) -> Any:
        """What `call` returns on rank 0, on every rank: JSON values only.

        Raises:
            ValueError: On the other ranks, with its message, when `call` raises an error on rank 0.
        """
        message = b""
        if self.is_main:
            try:
                message = json.dumps({"value": call()}).encode()
            except Exception as error:  # whatever it is: the other ranks wait for an answer
                self._broadcast(json.dumps({"error": str(error)}).encode())
                raise
        told = json.loads(self._broadcast(message))
        if "error" in told:
            raise ValueError(told["error"])
        return told["value"]

    def _broadcast(self, message: bytes) -> bytes:
        size = torch.tensor([len(message)], device="cpu")
        with self.guard():
            dist.broadcast(size, 0)
        content = torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else None
        if content is None or not self.is_main:
            content = torch.empty(int(size), dtype=torch.uint8, device="cpu")
        with self.guard():
            dist.broadcast(content, 0)
        return bytes(content.numpy().tobytes())

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All processes' named tensors on rank 0, on the CPU; nothing elsewhere.

        Args:
            tensors: This process's; no name may be another's too.
        """
        own = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        if not self.is_main:
            packed = torch.frombuffer(bytearray(safetensors.torch.save(own)), dtype=torch.uint8)
            self.start_send(torch.tensor([len(packed)], device="cpu"), 0).wait()
            self.start_send(packed, 0).wait()
            return {}
        for source in range(1, self.size):
            size = self.start_receive(
                torch.zeros(1, dtype=torch.int64, device="cpu"), source
            ).wait()
            content = self.start_receive(
                torch.empty(int(size), dtype=torch.uint8, device="cpu"), source
            ).wait()
            own |= safetensors.torch.load(content.numpy().tobytes())
        return own
