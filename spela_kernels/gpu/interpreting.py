"""Lets the interpreter of Triton up to 3.6 run under newer numpy; launches on GPUs never come here.

It takes int() of arrays that hold one number, which numpy refuses from 2.4 on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

__all__ = ["readable_scalars"]


@contextmanager
def readable_scalars() -> Iterator[None]:
    """Inside, the scalars of an interpreted kernel serve as Python integers where one is needed."""
    from triton.runtime import interpreter  # no other run needs it

    prepare = getattr(interpreter, "_patch_lang_tensor", None)
    if prepare is None:  # a newer Triton, which needs no repair
        yield
        return

    def prepare_and_repair(tensor: Any, *scope: Any) -> None:
        prepare(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    with patch.object(interpreter, "_patch_lang_tensor", prepare_and_repair):
        yield
