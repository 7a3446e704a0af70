"""What the kernels are called with: a generator for each op, on tensors that are only shapes (`meta`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from spela_kernels.architectures import Architecture

__all__ = ["HALF", "Case", "CaseGenerator", "dtypes", "labelled", "shaped"]

HALF = (torch.float16, torch.bfloat16)


class Case(NamedTuple):
    """One call of a back-end function.

    Attributes:
        label: What the report calls it.
        call: Asks for the launches.
        fallbacks: How many choices of tile to pass over.
    """

    label: str
    call: Callable[[], object]
    fallbacks: int = 0


CaseGenerator = Callable[[Architecture, bool], Iterator[Case]]


def labelled(words: tuple[object, ...], call: Callable[[], object], fallbacks: int = 0) -> Case:
    """A case called by what it is: its op, rule, sizes and names.

    Args:
        words: Of the label; sizes and dtypes in short, empty ones left out.
        call: Asks for the launches.
        fallbacks: How many choices of tile to pass over.

    Example:
        >>> labelled(("linear", "sgd", (50, 784), torch.float32, ""), lambda: None, 1).label
        'linear sgd 50x784 float32 fallback 1'
    """

    def said(word: object) -> str:
        if isinstance(word, tuple):
            return "x".join(map(str, word))
        return str(word).removeprefix("torch.")

    if fallbacks:
        words += ("fallback", fallbacks)
    return Case(" ".join(filter(None, map(said, words))), call, fallbacks)


def shaped(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without data; aligned as the allocator's tensors are.

    Example:
        >>> shaped(50, 784).device.type
        'meta'
    """
    return torch.empty(shape, dtype=dtype, device="meta")


def dtypes(arch: Architecture) -> tuple[torch.dtype, ...]:
    """The dtypes that kernels exist for."""
    return (torch.float32, *(HALF if arch.has_bf16 else HALF[:1]))
