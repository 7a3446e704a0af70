"""The grouped projection's calls: every function of its back-end, rule by rule."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from spela_kernels.aot.cases import Case, dtypes, labelled, rules, shaped, variants
from spela_kernels.contracts import Settings
from spela_kernels.gpu.architectures import Architecture
from spela_kernels.objectives import OBJECTIVES
from spela_kernels.projection import triton_backend
from spela_kernels.projection.types import Call

__all__ = ["projection_cases"]

Shape = tuple[int, int, int, int, int, int]  # B, K, D, d, G, C

FIRST: Shape = (64, 128, 900, 100, 9, 10)  # the authors' CIFAR network
SHAPES: tuple[Shape, ...] = (
    FIRST,
    (64, 128, 169, 100, 9, 10),
    (64, 128, 144, 100, 9, 10),  # Fashion-MNIST
    (64, 128, 16, 100, 9, 10),
    (33, 5, 65, 65, 17, 19),
    (128, 64, 256, 200, 9, 100),
    (64, 128, 225, 128, 99, 1000),
    (50, 32, 100, 500, 20, 100),
)


def _call(shape: Shape, dtype: torch.dtype, objective: str, mixed: bool) -> Call:
    """`mixed`: z alone is in `dtype`, the rest in float32."""
    batch, kernels, size, dim, groups, classes = shape
    own = torch.float32 if mixed else dtype
    return Call(
        shaped(batch, kernels, size, dtype=dtype),
        shaped(kernels, size, dim, dtype=own),
        shaped(kernels, groups, dim, dtype=own),
        shaped(kernels, classes, dtype=torch.int64),
        shaped(batch, dtype=torch.int64),
        Settings(objective=objective),
    )


def _buffer(call: Call) -> torch.Tensor:
    """Optimizer state, in float32 as the optimizers keep it."""
    return torch.empty_like(call.projection, dtype=torch.float32)


RULES = rules(triton_backend, _buffer, None)


def _case(
    rule: str,
    shape: Shape,
    dtype: torch.dtype,
    objective: str,
    fallbacks: int = 0,
    mixed: bool = False,
) -> Case:
    return labelled(
        ("projection", rule, shape, dtype, "mixed" * mixed, objective),
        lambda: RULES[rule](_call(shape, dtype, objective, mixed)),
        fallbacks,
    )


def _everything(arch: Architecture) -> Iterator[Case]:
    # One objective for each path through the kernels: the label's cosine, or all classes.
    for shape, variant, objective in product(SHAPES, variants(arch, RULES), ("mse", "softmax")):
        yield _case(variant.rule, shape, variant.dtype, objective, variant.fallbacks, variant.mixed)
    held = [row.name for row in OBJECTIVES.values() if row.in_kernels]
    for dtype, objective in product(dtypes(arch), held):
        yield _case("gradient", FIRST, dtype, objective)


def projection_cases(arch: Architecture, everything: bool) -> Iterator[Case]:
    """Calls of the projection's back-end.

    Args:
        arch: The GPU they are for.
        everything: False: two at the authors' first layer that between them reach every kernel.

    Yields:
        The cases.
    """
    if everything:
        yield from _everything(arch)
        return
    yield _case("adam", FIRST, torch.float32, "mse")
    yield _case("sgd", FIRST, dtypes(arch)[-1], "softmax", mixed=True)
