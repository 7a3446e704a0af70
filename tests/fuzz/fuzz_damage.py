"""Ways in which bytes and JSON go wrong, as hypothesis strategies."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

INTERESTING = st.sampled_from(
    [0, 1, -1, 2, 255, 256, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    INTERESTING,
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["cpu", "I64", "F64", "BOOL", "F8_E4M3", "uint8", "../..", "\x00", "\ud800"]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def damaged_bytes(draw: Any, good: bytes, head: int = 512) -> bytes:
    """`good`, cut, flipped, overwritten or spliced; more often in its first `head` bytes."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        near = draw(st.booleans())
        position = draw(st.integers(0, max(0, (min(head, len(data)) if near else len(data)) - 1)))
        kind = draw(st.sampled_from(["flip", "byte", "cut", "insert", "remove", "number", "copy"]))
        if kind == "flip" and data:
            data[position] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and data:
            data[position] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[position:]
        elif kind == "insert":
            data[position:position] = draw(st.binary(max_size=16))
        elif kind == "remove":
            del data[position : position + draw(st.integers(1, 64))]
        elif kind == "copy":
            start = draw(st.integers(0, len(data)))
            data[position:position] = data[start : start + 64]
        else:
            width = draw(st.sampled_from([2, 4, 8]))
            value = draw(INTERESTING) % 2 ** (8 * width)
            order = draw(st.sampled_from(["little", "big"]))
            data[position : position + width] = value.to_bytes(width, order)
    return bytes(data)


@st.composite
def damaged_json(draw: Any, good: Any) -> Any:
    """`good` with one to three of its values, at any depth, replaced, removed or doubled."""
    value = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(1, 3))):
        value = _damage(draw, value)
    return value


def _damage(draw: Any, value: Any) -> Any:
    deeper = isinstance(value, dict | list) and len(value) > 0 and draw(st.integers(0, 9)) > 0
    if not deeper:
        return draw(JSON)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    what = draw(st.sampled_from(["into", "into", "into", "remove", "double"]))
    if what == "remove":
        del value[key]
    elif what == "double" and isinstance(value, list):
        value.append(value[key])
    else:
        value[key] = _damage(draw, value[key])
    return value
