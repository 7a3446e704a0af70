"""What the kernels are called with: a generator for each op, on tensors that are only shapes (`meta`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spela_kernels.gpu.architectures import Architecture
from spela_kernels.rules import AdamRule, SgdRule, Step

__all__ = [
    "HALF",
    "Case",
    "CaseGenerator",
    "Variant",
    "dtypes",
    "labelled",
    "rules",
    "shaped",
    "variants",
]

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


class Variant(NamedTuple):
    """What a shape is compiled with, apart from its classes of objective and activation.

    Attributes:
        dtype: Of the input.
        mixed: Whether the parameters stay in float32.
        fallbacks: How many choices of tile to pass over.
        rule: The back-end's function and update rule.
    """

    dtype: torch.dtype
    mixed: bool
    fallbacks: int
    rule: str


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


def rules(
    backend: ModuleType, buffers: Callable[[Any], Any], none: Any
) -> dict[str, Callable[[Any], object]]:
    """Every function of an op's Triton back-end, rule by rule, each of the op's call alone.

    Args:
        backend: The op's `triton_backend`.
        buffers: Optimizer state of a call's parameters.
        none: What a step takes where it has none.
    """

    def gradient(call: Any) -> object:
        return backend.backward(call, backend.forward(call), shaped())

    def sgd(call: Any, momentum: float = 0.0, nesterov: bool = False) -> object:
        state = buffers(call) if momentum else none
        return backend.step_(
            call, Step(SgdRule(momentum, nesterov=nesterov), shaped(), state, none)
        )

    def adam(call: Any) -> object:
        first, second = buffers(call), buffers(call)
        return backend.step_(call, Step(AdamRule(), shaped(), first, second, shaped()))

    return {
        "scores": backend.scores,
        "gradient": gradient,
        "sgd": sgd,
        "nesterov": partial(sgd, momentum=0.9, nesterov=True),
        "adam": adam,
    }


def variants(arch: Architecture, rules: Iterable[str]) -> Iterator[Variant]:
    """The dtypes, tiles and rules of one shape.

    The first choice of tile meets every rule, in every dtype and with float32 parameters under 16-bit
    input. The fallbacks, smaller tiles of the same code, meet the rules that bracket the others: scores,
    the stored gradient, and Adam, which keeps the most at once; in float32 and float16.

    Args:
        arch: The GPU they are for.
        rules: Names of all rules.

    Yields:
        The variants.
    """
    kinds = [(dtype, False) for dtype in dtypes(arch)] + [(torch.float16, True)]
    for dtype, mixed in kinds:
        for rule in rules:
            yield Variant(dtype, mixed, 0, rule)
    for dtype, fallbacks, rule in product(
        (torch.float32, torch.float16), (1, 2), ("scores", "gradient", "adam")
    ):
        yield Variant(dtype, False, fallbacks, rule)
