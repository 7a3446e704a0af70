"""A stream's state as one safetensors file: tensors by name, the rest as JSON in the metadata."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from spela.files.tensors import read_tensors, save_tensors
from spela.streaming.classes import Label
from spela.training.checkpoint import load_state_tensors, state_tensors
from spela.training.lock import locked

__all__ = ["FileState", "Stream", "file_state", "read_stream", "write_stream"]

_FORMAT = "spela-stream-1"
_WAIT_S = 60.0  # a save takes seconds at most
FileState = tuple[int, int, int]


@dataclass(frozen=True)
class Stream:
    """What a stream needs to go on, besides network and optimizer.

    Attributes:
        labels: Labels met, in the order of their class indices.
        memory: Capacity of the replay buffer.
        policy: Its policy.
        replay: Remembered samples a step.
        frozen: Whether each SPELA layer is frozen; of one that is in part, the names of those parameters.
        tables: Vectors or groups of all classes there may be, one tensor a SPELA layer.
        buffer: The replay buffer's state.
        generator: State of the generator, uint8.
    """

    labels: list[Label]
    memory: int
    policy: str
    replay: int
    frozen: list[bool | list[str]]
    tables: list[Tensor]
    buffer: dict[str, Tensor]
    generator: Tensor


def file_state(path: Path) -> FileState:
    """What tells a file from one that has been written in its place."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def write_stream(
    path: Path,
    stream: Stream,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    known: FileState | None = None,
) -> FileState:
    """Write a stream, whole or not at all.

    Args:
        path: The file to create or replace.
        stream: Its state.
        net: Its network.
        optimizer: The network's optimizer.
        known: The file as this stream last read or wrote it; None: whatever is there is replaced.

    Returns:
        The file as it is then.

    Raises:
        ValueError: If something else has been written there since.
        OSError: If the disk is full or the folder not writable; an older file then stays.
    """
    tensors = state_tensors(net, optimizer)
    tensors |= {f"classes.{i}": table.contiguous() for i, table in enumerate(stream.tables)}
    tensors |= {f"buffer.{name}": value for name, value in stream.buffer.items()}
    tensors["generator"] = stream.generator
    facts = {
        "labels": stream.labels,
        "memory": stream.memory,
        "policy": stream.policy,
        "replay": stream.replay,
        "frozen": stream.frozen,
    }
    lock = path.with_name(f".{path.name}.lock")
    with locked(lock, f"another process is writing {path}: save to another file", _WAIT_S):
        if known is not None and path.exists() and file_state(path) != known:
            raise ValueError(
                f"{path} holds what another stream learnt since this one was loaded from it or saved to it: "
                "save to another file, or load it again"
            )
        save_tensors(path, tensors, {"format": _FORMAT, "stream": json.dumps(facts)})
        return file_state(path)


def read_stream(path: Path) -> tuple[Stream, Callable[[nn.Module, torch.optim.Optimizer], None]]:
    """Read a stream back; nothing is unpickled.

    Args:
        path: A file that `write_stream` wrote.

    Returns:
        Its state, and a function that puts its weights and optimizer state into a network that shows
        the same classes, and into its optimizer.

    Raises:
        ValueError: If the file is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: give a file that StreamingClassifier.save wrote")
    try:
        tensors, metadata = read_tensors(path, _FORMAT)
        facts: dict[str, Any] = json.loads(metadata["stream"])
        stream = Stream(
            labels=[_checked(label, str, int) for label in _checked(facts["labels"], list)],
            memory=_checked(facts["memory"], int),
            policy=_checked(facts["policy"], str),
            replay=_checked(facts["replay"], int),
            frozen=[_checked(value, bool, list) for value in _checked(facts["frozen"], list)],
            tables=[tensors[f"classes.{i}"] for i in range(len(facts["frozen"]))],
            buffer={name: tensors[f"buffer.{name}"] for name in ("x", "y", "seen", "was_largest")},
            generator=tensors["generator"],
        )
        if len(set(stream.labels)) != len(stream.labels):
            raise ValueError("labels repeat")
    except (
        SafetensorError, OSError, UnicodeDecodeError, KeyError, TypeError, ValueError, RecursionError,
    ) as error:  # fmt: skip
        raise ValueError(
            f"{path} is not a readable stream ({error}): it is damaged or not SPELA's"
        ) from None
    return stream, lambda net, optimizer: load_state_tensors(tensors, net, optimizer)


def _checked(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(f"metadata holds {value!r}")
    return value
