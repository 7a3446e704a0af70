"""Named tensors as a safetensors file: whole or absent, and the same bytes for the same content."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spela.files.atomic import write_atomically

__all__ = ["fill_tensors", "read_tensors", "save_tensors"]


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and texts.

    Args:
        path: The file to create or replace.
        tensors: By name, contiguous.
        metadata: Texts by name.

    Raises:
        OSError: If the disk is full or the folder not writable; an older file then stays.
    """

    write_atomically(path, lambda name: fill_tensors(name, tensors, metadata))


def fill_tensors(name: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """What `save_tensors` lets `write_atomically` do, for a file that is written beside others.

    Args:
        name: The temporary file.
        tensors: By name, contiguous.
        metadata: Texts by name.

    Raises:
        OSError: If it cannot be written.
    """
    try:
        save_file(tensors, name, metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from None  # `write_atomically` names the file
    _sort_metadata(name)


def read_tensors(path: Path, form: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read such a file back; nothing is unpickled.

    Args:
        path: The file.
        form: What its text `format` must be.

    Returns:
        Tensors on the CPU and texts, by name.

    Raises:
        ValueError: If it is of another format.
        SafetensorError, OSError, UnicodeDecodeError: If it is damaged or cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != form:
            raise ValueError(f"format is not {form}")
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def _sort_metadata(name: str) -> None:
    """safetensors writes the texts in an order that changes from call to call.

    Source: the format's description: 8 bytes of length, then JSON that spaces may follow, then tensors.
    """
    with open(name, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise OSError(f"the header takes {len(text)} bytes instead of {size}")
        file.seek(8)
        file.write(text.ljust(size))
