"""Parity of a back-end with the reference: the cases, everything a layer computes, the rule of two errors.

    |back-end - float64 oracle| <= 2 |reference in the same dtype - oracle| + floor      for every tensor

Imports no Triton: the tests and `python -m spela_kernels.selftest` bring the back-end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from spela_kernels.contracts import Settings
from spela_kernels.linear import reference
from spela_kernels.linear.types import Parameters
from spela_kernels.rules import AdamRule, SgdRule

__all__ = [
    "CASES",
    "FLOOR",
    "RULES",
    "Case",
    "counted_launches",
    "make_tensors",
    "mismatches",
    "run_case",
]

# Rounding that the reference happens to escape: units of the result's own size, per dtype.
FLOOR = {torch.float32: 5e-7, torch.float16: 1e-4, torch.bfloat16: 8e-4}
RULES: dict[str, SgdRule | AdamRule] = {
    "sgd": SgdRule(weight_decay=1e-3),
    "momentum": SgdRule(momentum=0.9, weight_decay=1e-3),
    "nesterov": SgdRule(momentum=0.9, nesterov=True),
    "adam": AdamRule(beta2=0.99, weight_decay=1e-3),
}


@dataclass(frozen=True)
class Case:
    """A layer, its data and one optimizer step.

    Attributes:
        sizes: B, I, O, C.
        objective: A name from `OBJECTIVES`.
        activation: A name from `ACTIVATIONS`.
        rule: A name from `RULES`.
        dtype: What the tensors are rounded to; the oracle starts from the same numbers.
        layout: contiguous, strided (no tensor is), no bias, or zero rows (every fourth of x).
        params_dtype: Of parameters and class vectors; None: the case's dtype.
    """

    sizes: tuple[int, int, int, int]
    objective: str
    activation: str
    rule: str = "sgd"
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    params_dtype: torch.dtype | None = None


CASES = {
    "ones": Case((1, 1, 1, 1), "log", "leaky_relu"),
    "ones-softmax-fp16": Case((1, 1, 1, 1), "softmax", "prelu", "adam", torch.float16),
    "primes-no-bias": Case((7, 13, 5, 3), "angular", "tanh", "momentum", layout="no bias"),
    "block-plus-1": Case((33, 65, 65, 17), "softmax", "gelu", "nesterov"),
    "block-minus-1": Case((31, 63, 63, 15), "euclidean", "elu", "adam"),
    "paper-head-fp16": Case((50, 96, 10, 10), "log", "leaky_relu", "sgd", torch.float16),
    "several-blocks": Case((130, 136, 72, 10), "log", "leaky_relu", "momentum"),
    "several-blocks-fp16": Case((70, 136, 72, 40), "softmax", "relu", "sgd", torch.float16),
    "many-classes": Case((10, 24, 20, 1030), "softmax", "identity"),
    "prelu": Case((20, 40, 34, 5), "mse", "prelu", "adam"),
    "strided": Case((18, 24, 40, 6), "cosine", "leaky_relu", "momentum", layout="strided"),
    "strided-fp16": Case((18, 24, 40, 6), "softmax", "prelu", "adam", torch.float16, "strided"),
    "mixed": Case(
        (18, 24, 40, 6), "softmax", "prelu", "momentum", torch.float16, params_dtype=torch.float32
    ),
    "mixed-label": Case(
        (33, 65, 34, 5), "log", "gelu", "adam", torch.float16, params_dtype=torch.float32
    ),
    "zero-rows": Case((18, 24, 20, 6), "log", "leaky_relu", layout="zero rows"),
}


def _every_second(tensor: Tensor) -> Tensor:
    """The same values at strides that are twice as long along the last axis."""
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def make_tensors(
    case: Case, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[Tensor, Parameters, Tensor, Tensor]:
    """Input, parameters, class vectors and labels of a case: the same numbers on every call.

    Args:
        case: The case.
        dtype: Of x, and of the rest unless the case keeps that wider; the numbers are those that the
            case's own dtypes can represent.
        device: Where they are.

    Returns:
        x (B, I), parameters, vectors (C, O), target (B,).
    """
    batch, inputs, outputs, classes = case.sizes
    g = torch.Generator().manual_seed(3)
    x = torch.randn(batch, inputs, generator=g)
    weight = torch.randn(outputs, inputs, generator=g) / inputs**0.5
    bias = 0.1 * torch.randn(outputs, generator=g)
    vectors = torch.nn.functional.normalize(torch.randn(classes, outputs, generator=g), dim=1)
    target = torch.randint(classes, (batch,), generator=g).to(device)
    if case.layout == "zero rows":
        x[::4], bias = 0, torch.zeros_like(bias)
    x = x.to(case.dtype).to(device, dtype)
    own = case.params_dtype or case.dtype
    dtype = torch.promote_types(own, dtype)
    weight, bias, vectors = (t.to(own).to(device, dtype) for t in (weight, bias, vectors))
    if case.layout == "strided":
        x, weight, bias = _every_second(x), weight.t().contiguous().t(), _every_second(bias)
        vectors, target = vectors.t().contiguous().t(), _every_second(target)
    slope = None
    if case.activation == "prelu":
        slope = torch.tensor([0.25], dtype=dtype, device=device)
    return x, Parameters(weight, None if case.layout == "no bias" else bias, slope), vectors, target


def _buffers(params: Parameters, seed: int, dtype: torch.dtype) -> Parameters:
    """Optimizer state in at least float32, as the optimizers keep it."""
    g = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    weight, bias, slope = (
        None if p is None else 0.01 * torch.rand(p.shape, generator=g).to(p.device, wide)
        for p in params
    )
    return Parameters(weight, bias, slope)  # type: ignore[arg-type]


def _unchanged(tensors: list[Tensor | None], before: list[Tensor | None]) -> None:
    for now, then in zip(tensors, before, strict=True):
        if now is not None and then is not None and not torch.equal(now, then):
            raise RuntimeError(f"a read-only tensor of shape {tuple(now.shape)} changed")


def run_case(
    backend: ModuleType, case: Case, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Everything a layer computes: scores, forward, gradients, and a step with its state.

    Args:
        backend: A module with the reference's functions.
        case: The case.
        dtype: Of all tensors.
        device: Where they are.

    Returns:
        Tensors by name, such as forward.y, gradient.weight, updated.weight.

    Raises:
        RuntimeError: If a tensor that is only read has changed.
    """
    x, params, vectors, target = make_tensors(case, dtype, device)
    settings = Settings(case.activation, objective=case.objective)
    fixed: list[Tensor | None] = [x, vectors, target]
    before = [None if t is None else t.clone() for t in (*fixed, *params)]
    results: dict[str, Tensor] = {}

    def note(group: str, **tensors: Tensor | None) -> None:
        results.update({f"{group}.{k}": t for k, t in tensors.items() if t is not None})

    _, scores = backend.scores(x, params, vectors, settings)
    saved = backend.forward(x, params, vectors, target, settings)
    wide = torch.promote_types(dtype, torch.float32)
    grad_loss = torch.tensor(2.0, dtype=wide, device=device)
    gradient = backend.backward(x, params, vectors, target, settings, saved, grad_loss)
    note("forward", scores=scores, **saved._asdict())
    note("gradient", **gradient._asdict())
    _unchanged([*fixed, *params], before)

    first, second = _buffers(params, 1, dtype), _buffers(params, 2, dtype)
    lr, rule = torch.tensor(0.1, dtype=wide, device=device), RULES[case.rule]
    tensors = (x, params, vectors, target, settings)
    if isinstance(rule, AdamRule):
        step = torch.tensor(3.0, dtype=wide, device=device)
        loss, y = backend.adam_step_(*tensors, first, second, step, lr, rule)
        note("second", **second._asdict())
    else:
        buffers = first if rule.momentum else None
        loss, y = backend.sgd_step_(*tensors, buffers, lr, rule)
    note("step", loss=loss, y=y)
    note("first", **first._asdict())
    note("updated", **params._asdict())
    _unchanged(fixed, before[:3])
    return results


def mismatches(backend: ModuleType, case: Case, device: torch.device | str = "cpu") -> list[str]:
    """Judge a back-end on a case by the rule of two errors.

    Args:
        backend: A module with the reference's functions.
        case: The case.
        device: Where both run.

    Returns:
        A line for every tensor that is too far from float64; empty where the back-end is right.

    Example:
        >>> mismatches(reference, CASES["primes-no-bias"])
        []
    """
    kernel = run_case(backend, case, case.dtype, device)
    oracle = run_case(reference, case, torch.float64, device)
    same = run_case(reference, case, case.dtype, device)
    if kernel.keys() != same.keys():
        return [f"tensors {sorted(kernel)} where the reference gives {sorted(same)}"]
    lines = []
    for name, exact in oracle.items():
        if exact.numel() == 0:
            continue
        error = (kernel[name].double() - exact).abs()
        allowed = 2 * (same[name].double() - exact).abs().max()
        floor = FLOOR[case.dtype] * (1 + exact.abs().max())
        if not bool((error <= allowed + floor).all()):  # NaN is a mismatch too
            lines.append(f"{name}: error {error.max():.2e}, allowed {allowed:.2e} + {floor:.2e}")
    return lines


@contextmanager
def counted_launches() -> Iterator[list[str]]:
    """Names of the kernels that the linear layer really launches inside the `with` block."""
    from spela_kernels.linear import launch  # needs triton, which is absent on some machines

    names: list[str] = []
    run = launch.run

    def counting(arch: Any, kernel: Any, *args: Any, **kwargs: Any) -> None:
        run(arch, kernel, *args, **kwargs)
        names.append(kernel.__name__)

    launch.run = counting
    try:
        yield names
    finally:
        launch.run = run
