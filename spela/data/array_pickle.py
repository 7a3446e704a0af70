"""Lists, dicts, numbers, text and NumPy arrays out of a pickle, without unpickling: nothing in it is called.

Python's unpickler calls what a file names. Here the file's instructions are decoded by `pickletools`,
which runs none, and the few that build plain data are followed; any other ends the reading. What a file
makes is at most a few times as large as the file.
"""

from __future__ import annotations

import math
import pickletools
import re
from typing import Any

import numpy as np

__all__ = ["read_pickled_arrays"]

_PUSHES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINFLOAT", "FLOAT",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MAKES = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NUMBERS = re.compile(r"[uif][1248]|b1")


class _Name(str):
    """What a pickle would import and call."""


class _Dtype:
    """What `numpy.dtype(code)` would be; its byte order comes later."""

    def __init__(self, code: str, align: object, copy: object) -> None:
        if not _NUMBERS.fullmatch(code):
            raise ValueError(f"it holds an array of {code!r}, not of numbers")
        self.dtype = np.dtype(code)

    def built(self, version: int, order: str, *_: object) -> np.dtype:
        return self.dtype.newbyteorder(order)  # type: ignore[arg-type]


class _Array:
    """The place of an array; shape, dtype and values come later."""

    def __init__(self, kind: object, shape: object, code: object) -> None:
        pass

    def built(
        self, version: int, shape: tuple[int, ...], dtype: np.dtype, by_column: bool, data: Any
    ) -> np.ndarray:
        content = data.encode("latin-1") if isinstance(data, str) else _of(bytes, data)
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content):
            raise ValueError(f"it claims an array of shape {shape} in {len(content)} bytes")
        array = np.frombuffer(content, dtype).reshape(shape, order="F" if by_column else "C")
        return array.astype(dtype.newbyteorder("="))


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin-1")


# Under the names that NumPy 1 and 2 and Python 2 and 3 write.
_KNOWN: dict[str, Any] = {
    "numpy.core.multiarray _reconstruct": _Array,
    "numpy._core.multiarray _reconstruct": _Array,
    "numpy dtype": _Dtype,
    "_codecs encode": _latin1,  # how protocols below 3 write bytes
    "__builtin__ bytes": lambda: b"",  # and no bytes
    "numpy ndarray": None,  # only ever an argument
}


def read_pickled_arrays(content: bytes) -> Any:
    """The data that a pickle of plain Python data and numeric arrays describes.

    Args:
        content: A pickle of protocol 0 to 4, as Python 2 or 3 and any NumPy write it.

    Returns:
        None, bool, int, float, str, bytes, and lists, tuples and dicts of them; arrays in native byte
        order. Text of Python 2 is read as Latin-1.

    Raises:
        ValueError: It holds anything else, or is damaged.

    Example:
        >>> read_pickled_arrays(b"(lp0\\nI3\\naI4\\na.")
        [3, 4]
        >>> read_pickled_arrays(b"cos\\nsystem\\n(S'echo'\\ntR.")
        Traceback (most recent call last):
        ...
        ValueError: it is a pickle that names os system, which is no array: nothing of it was run
    """
    # Of a file that NumPy wrote, bytes are made once of text, and arrays once of bytes.
    machine = _Machine(most=4 * len(content))
    try:
        for opcode, argument, _ in pickletools.genops(content):
            machine.follow(opcode.name, argument)
        return machine.stack.pop()
    except ValueError:
        raise
    # What a damaged file makes of the stack.
    except (
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ValueError(f"it is a damaged pickle ({type(error).__name__})") from error


class _Machine:
    """A stack with marks, and a memo.

    Args:
        most: Bytes that may be made out of what the file holds.
    """

    def __init__(self, most: int) -> None:
        self.left = most
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.places: dict[int, list[int]] = {}  # where the memo has what is yet to be built, by id

    def follow(self, name: str, argument: Any) -> None:
        """One instruction."""
        stack = self.stack
        if name in ("PROTO", "FRAME", "STOP"):
            pass
        elif name in _PUSHES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _MAKES:
            stack.append(_MAKES[name]())
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._remember(argument)
        elif name == "MEMOIZE":
            self._remember(len(self.memo))
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name in ("TUPLE", "LIST"):
            items = self._to_mark()
            stack.append(tuple(items) if name == "TUPLE" else items)
        elif name == "APPEND":
            item = stack.pop()
            _of(list, stack[-1]).append(item)
        elif name == "APPENDS":
            items = self._to_mark()
            _of(list, stack[-1]).extend(items)
        elif name in ("SETITEM", "SETITEMS", "DICT"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._to_mark()
            if name == "DICT":
                stack.append({})
            for key, value in zip(items[::2], items[1::2], strict=True):
                _of(dict, stack[-1])[_of((str, bytes, int), key)] = value
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                argument = f"{stack.pop(-2)} {stack.pop()}"
            if argument not in _KNOWN:
                raise ValueError(
                    f"it is a pickle that names {argument}, which is no array: nothing of it was run"
                )
            stack.append(_Name(argument))
        elif name == "REDUCE":
            arguments = stack.pop()
            self._spend(sum(len(a) for a in arguments if isinstance(a, str)))
            stack.append(_KNOWN[_of(_Name, stack.pop())](*arguments))
        elif name == "BUILD":
            state = stack.pop()
            self._spend(sum(len(part) for part in state if isinstance(part, (str, bytes))))
            self._replace(_of((_Array, _Dtype), stack[-1]), stack[-1].built(*state))
        else:
            raise ValueError(
                f"it is a pickle with a {name}, which no array needs: nothing of it was run"
            )

    def _to_mark(self) -> list[Any]:
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def _spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ValueError("it is a pickle that makes far more data than it holds")

    def _remember(self, index: int) -> None:
        item = self.memo[index] = self.stack[-1]
        if isinstance(item, (_Array, _Dtype)):
            self.places.setdefault(id(item), []).append(index)

    def _replace(self, place: Any, content: Any) -> None:
        self.stack[-1] = content
        for index in self.places.pop(id(place), ()):
            if self.memo[index] is place:
                self.memo[index] = content


def _of(kind: Any, item: Any) -> Any:
    if not isinstance(item, kind):
        raise TypeError
    return item
