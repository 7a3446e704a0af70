"""The linear layer's calls: every function of its back-end, rule by rule."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from spela_kernels.activations import ACTIVATIONS
from spela_kernels.aot.cases import Case, dtypes, labelled, rules, shaped, variants
from spela_kernels.contracts import Settings
from spela_kernels.gpu.architectures import Architecture
from spela_kernels.linear import triton_backend
from spela_kernels.linear.types import NO_BUFFERS, Buffers, Call, Parameters
from spela_kernels.objectives import OBJECTIVES

__all__ = ["linear_cases"]

# One name for each path through the kernels: the objective (the label's cosine, or all classes) and the
# activation (its derivative from y, from z, or with a learnt slope) meet in one product of two numbers.
CLASSES = (
    ("log", "leaky_relu"),
    ("softmax", "leaky_relu"),
    ("softmax", "gelu"),
    ("log", "prelu"),
)

Shape = tuple[int, int, int, int]  # B, I, O, C

PAPER: Shape = (50, 784, 1024, 10)
SHAPES: tuple[Shape, ...] = (
    PAPER,
    (50, 1024, 10, 10),
    (512, 1024, 1024, 10),
    (100, 1001, 130, 100),
    (3, 5, 7, 4),
)


def _call(shape: Shape, dtype: torch.dtype, objective: str, activation: str, mixed: bool) -> Call:
    """`mixed`: the input alone is in `dtype`, the parameters in float32."""
    batch, inputs, outputs, classes = shape
    own = torch.float32 if mixed else dtype
    slope = shaped(1, dtype=own) if activation == "prelu" else None
    return Call(
        shaped(batch, inputs, dtype=dtype),
        Parameters(shaped(outputs, inputs, dtype=own), shaped(outputs, dtype=own), slope),
        shaped(classes, outputs, dtype=own),
        shaped(batch, dtype=torch.int64),
        Settings(activation=activation, objective=objective),
    )


def _buffers(call: Call) -> Buffers:
    weight, bias, slope = (None if p is None else torch.empty_like(p) for p in call.params)
    return weight, bias, slope


RULES = rules(triton_backend, _buffers, NO_BUFFERS)


def _case(
    rule: str,
    shape: Shape,
    dtype: torch.dtype,
    objective: str = "log",
    activation: str = "leaky_relu",
    fallbacks: int = 0,
    mixed: bool = False,
) -> Case:
    return labelled(
        ("linear", rule, shape, dtype, "mixed" * mixed, objective, activation),
        lambda: RULES[rule](_call(shape, dtype, objective, activation, mixed)),
        fallbacks,
    )


def _everything(arch: Architecture) -> Iterator[Case]:
    for shape, variant, (objective, activation) in product(SHAPES, variants(arch, RULES), CLASSES):
        yield _case(
            variant.rule,
            shape,
            variant.dtype,
            objective,
            activation,
            variant.fallbacks,
            variant.mixed,
        )
    for dtype in dtypes(arch):
        for row in OBJECTIVES.values():
            if row.in_kernels:
                yield _case("sgd", PAPER, dtype, row.name)
        for phi in ACTIVATIONS.values():
            if phi.in_kernels:
                yield _case("sgd", PAPER, dtype, activation=phi.name)


def linear_cases(arch: Architecture, everything: bool) -> Iterator[Case]:
    """Calls of the linear back-end.

    Args:
        arch: The GPU they are for.
        everything: False: a few at the paper's first layer that between them reach every kernel,
            dtype class, objective class and update rule.

    Yields:
        The cases.
    """
    if everything:
        yield from _everything(arch)
        return
    half = dtypes(arch)[-1]
    yield _case("adam", PAPER, torch.float32)
    yield _case("sgd", PAPER, half)
    yield _case("gradient", PAPER, torch.float32, "softmax")
    yield _case("adam", PAPER, torch.float16, "softmax", "gelu", mixed=True)
