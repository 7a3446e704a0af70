"""Named tensors as a safetensors file with their digest: whole or absent, the same bytes for one state."""

from __future__ import annotations

import hashlib
import json
import os
from io import BufferedIOBase
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spela.files.atomic import write_atomically

__all__ = ["check_digest", "fill_tensors", "read_tensors", "save_tensors"]

_DIGEST = "sha256"  # of the tensors' bytes


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
    path = Path(name)
    # safetensors fills a file of its own beside its target. In a folder named after ours, what a killed
    # process leaves of it is found by whoever looks for what is left of ours.
    with TemporaryDirectory(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent) as folder:
        filled = os.path.join(folder, "tensors")
        try:
            save_file(tensors, filled, {**metadata, _DIGEST: "0" * 64})
        except SafetensorError as error:
            raise OSError(str(error)) from None  # `write_atomically` names the file
        _complete_metadata(filled)
        os.replace(filled, path)


def read_tensors(path: Path, form: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read such a file back; nothing is unpickled.

    Args:
        path: The file.
        form: What its text `format` must be.

    Returns:
        Tensors on the CPU and texts, by name.

    Raises:
        ValueError: If it is of another format, or holds other bytes than were written.
        SafetensorError, OSError, UnicodeDecodeError: If it is damaged or cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != form:
            raise ValueError(f"format is not {form}")
        check_digest(path, metadata)
        metadata.pop(_DIGEST, None)
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def check_digest(path: Path, metadata: dict[str, str]) -> None:
    """Refuse tensors that are not those that were written; files from elsewhere say nothing of theirs.

    Args:
        path: A safetensors file that can be read.
        metadata: Its texts.

    Raises:
        ValueError: If it holds other bytes than were written.
        OSError: If it cannot be read.
    """
    with open(path, "rb") as file:
        if metadata.get(_DIGEST) not in (None, _digest_of_tensors(file)):
            raise ValueError("its tensors are not those that were written")


def _digest_of_tensors(file: BufferedIOBase) -> str:
    """SHA-256 of what follows the header."""
    file.seek(8 + int.from_bytes(file.read(8), "little"))
    return hashlib.file_digest(file, "sha256").hexdigest()


def _complete_metadata(name: str) -> None:
    """Put in the digest, and sort the texts, whose order in safetensors' files changes from call to call.

    Source: the format's description: 8 bytes of length, then JSON that spaces may follow, then tensors.
    """
    with open(name, "r+b") as file:
        digest = _digest_of_tensors(file)
        file.seek(0)
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        texts = header.pop("__metadata__") | {_DIGEST: digest}
        ordered = {"__metadata__": dict(sorted(texts.items())), **header}
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise OSError(f"the header takes {len(text)} bytes instead of {size}")
        file.seek(8)
        file.write(text.ljust(size))
