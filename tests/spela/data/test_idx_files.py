"""The idx reader: exact values, and refusal of whatever its header cannot back."""

from __future__ import annotations

import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from spela.data.idx import looks_like_idx, read_idx


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_values_and_type_survive(tmp_path, idx_bytes, dtype, packed):
    array = np.arange(-6, 6).reshape(2, 2, 3).astype(dtype)
    data = idx_bytes(array)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(data) if packed else data)
    found = read_idx(path)
    assert found.dtype == np.dtype(dtype)
    assert found.dtype.isnative
    assert found.flags.writeable
    np.testing.assert_array_equal(found, array)
    assert looks_like_idx(path)


def _labels(count: int = 20) -> bytes:
    """Labels with a header for `count` of them over 20 bytes of data."""
    return struct.pack(">BBBBI", 0, 0, 8, 1, count) + bytes(20)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an idx file"),
        (b"\0\0\x08", "not an idx file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "not an idx file"),
        (b"\0\0\x07\x01" + bytes(40), "not an idx file"),
        (b"\0\0\x08\x00" + bytes(40), "not an idx file"),
        (b"\0\0\x08\x03\0\0\0\x01", "ends inside its idx header"),
        (_labels(21), "more than a file of its size"),
        (_labels(19), r"should hold 19 bytes for shape \(19,\) but holds more"),
        (gzip.compress(_labels(21)), "should hold 21 bytes.* but holds 20"),
        (gzip.compress(_labels())[:-12], "Compressed file ended|ended before"),
        (gzip.compress(_labels())[:12] + b"garbage garbage garbage", "cannot read"),
        (b"\x1f\x8bnot gzip at all", "cannot read"),
    ],
    ids=[
        "empty",
        "three-bytes",
        "png",
        "unknown-type",
        "no-axes",
        "short-header",
        "short-data",
        "long-data",
        "short-data-gzip",
        "truncated-gzip",
        "garbage-in-gzip",
        "garbage-gzip",
    ],
)
def test_damage_is_one_line_with_the_path(tmp_path, data, message):
    path = tmp_path / "broken"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", [(2**31,), (2**32 - 1,) * 3], ids=["2-GiB", "2^96"])
def test_an_absurd_header_allocates_nothing(tmp_path, packed, shape):
    data = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + b"1234567890"
    path = tmp_path / "absurd"
    path.write_bytes(gzip.compress(data) if packed else data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than a file of its size can hold"):
            read_idx(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_a_missing_file_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        read_idx(tmp_path / "nothing")
