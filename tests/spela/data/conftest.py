"""Writers of small files in the real on-disk formats."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def _idx_bytes(array: np.ndarray) -> bytes:
    code = _CODES[array.dtype.str[1:]]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def idx_bytes() -> Callable[[np.ndarray], bytes]:
    """The bytes of an array in the idx format."""
    return _idx_bytes


@pytest.fixture
def mnist_folder() -> Callable[..., dict[str, np.ndarray]]:
    """Write the four files of the MNIST family into a folder; returns what was written."""

    def write(folder: Path, *, packed: bool = False, **replace: np.ndarray) -> dict:
        rng = np.random.default_rng(0)
        arrays = {
            "train-images-idx3-ubyte": rng.integers(0, 256, (12, 28, 28), np.uint8),
            "train-labels-idx1-ubyte": np.arange(12, dtype=np.uint8) % 10,
            "t10k-images-idx3-ubyte": rng.integers(0, 256, (4, 28, 28), np.uint8),
            "t10k-labels-idx1-ubyte": np.array([3, 9, 0, 1], np.uint8),
        }
        for key, array in replace.items():
            arrays[next(name for name in arrays if key in name.replace("-", "_"))] = array
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            data = _idx_bytes(array)
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)
        return arrays

    return write


@pytest.fixture
def empty_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root without files, on a machine without Debian's Fashion-MNIST."""
    monkeypatch.setattr("spela.data.mnist._DEBIAN_FASHION", tmp_path / "no-debian")
    return tmp_path / "cache" / "data"
