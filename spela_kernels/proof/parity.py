"""Parity of a back-end with the reference: the rule of two errors, and what the cases of all ops share.

    |back-end - float64 oracle| <= 2 |reference in the same dtype - oracle| + floor      for every tensor

Each op has its cases in a `parity.py` of its own. Imports no Triton: the tests and
`python -m spela_kernels.selftest` bring the back-end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol
from unittest.mock import patch

import torch
from torch import Tensor

from spela_kernels.rules import AdamRule, SgdRule, Step

__all__ = [
    "FLOOR",
    "OPS",
    "RULES",
    "Case",
    "counted_launches",
    "every_second",
    "make_state",
    "make_step",
    "mismatches",
    "unchanged",
]

OPS = ("linear", "projection")
# Rounding that the reference happens to escape: units of the result's own size, per dtype.
FLOOR = {torch.float32: 5e-7, torch.float16: 1e-4, torch.bfloat16: 8e-4}
RULES: dict[str, SgdRule | AdamRule] = {
    "sgd": SgdRule(weight_decay=1e-3),
    "momentum": SgdRule(momentum=0.9, weight_decay=1e-3),
    "nesterov": SgdRule(momentum=0.9, nesterov=True),
    "adam": AdamRule(beta2=0.99, weight_decay=1e-3),
}


class Case(Protocol):
    """A call of an op: `linear.parity.Case`, `projection.parity.Case`."""

    @property
    def op(self) -> str:
        """One of `OPS`."""

    @property
    def objective(self) -> str:
        """A name from `OBJECTIVES`."""

    @property
    def dtype(self) -> torch.dtype:
        """What the tensors are rounded to; the oracle starts from the same numbers."""

    @property
    def launches(self) -> int:
        """Kernels that a step launches."""

    def call(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
        """The op's `Call`, on new tensors of the same numbers."""

    def run(
        self, backend: ModuleType, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Everything the op computes, by name, such as gradient.weight or step.loss.

        Args:
            backend: A module with the reference's functions.
            dtype: Of all tensors, unless the case keeps some of them wider.
            device: Where they are.

        Raises:
            RuntimeError: If a tensor that is only read has changed.
        """

    def fused_step(self, device: torch.device | str) -> Callable[[], object]:
        """An SGD step of the public function, on tensors of its own."""


def every_second(tensor: Tensor) -> Tensor:
    """The same values at strides that are twice as long along the last axis.

    Example:
        >>> every_second(torch.arange(3)).stride()
        (2,)
    """
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def make_state(generator: torch.Generator, parameter: Tensor) -> Tensor:
    """Optimizer state of a parameter in at least float32, as the optimizers keep it."""
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return 0.01 * torch.rand(parameter.shape, generator=generator).to(parameter.device, wide)


def unchanged(tensors: Sequence[Tensor | None], before: Sequence[Tensor | None]) -> None:
    """Raise RuntimeError where a tensor differs from its copy of before."""
    for now, then in zip(tensors, before, strict=True):
        if now is not None and then is not None and not torch.equal(now, then):
            raise RuntimeError(f"a read-only tensor of shape {tuple(now.shape)} changed")


def make_step(rule: str, x: Tensor, first: Any, second: Any, none: Any = None) -> Step[Any]:
    """A step of a rule: Adam's third, with a learning rate of 0.1.

    Args:
        rule: A name from `RULES`.
        x: A tensor of the op: its device, and its dtype where that is wide.
        first, second: Optimizer state; only Adam uses the second, plain SGD neither.
        none: What stands for state that a rule does not use.
    """
    chosen = RULES[rule]
    wide = torch.promote_types(x.dtype, torch.float32)
    lr, count = (torch.tensor(value, dtype=wide, device=x.device) for value in (0.1, 3.0))
    if isinstance(chosen, AdamRule):
        return Step(chosen, lr, first, second, count)
    return Step(chosen, lr, first if chosen.momentum else none, none)


def mismatches(backend: ModuleType, case: Case, device: torch.device | str = "cpu") -> list[str]:
    """Judge a back-end on a case by the rule of two errors.

    Args:
        backend: A module with the reference's functions.
        case: The case.
        device: Where both run.

    Returns:
        A line for every tensor that is too far from float64; empty where the back-end is right.

    Example:
        >>> from spela_kernels.linear import parity, reference
        >>> mismatches(reference, parity.CASES["primes-no-bias"])
        []
    """
    reference = import_module(f"spela_kernels.{case.op}.reference")
    kernel = case.run(backend, case.dtype, device)
    oracle = case.run(reference, torch.float64, device)
    same = case.run(reference, case.dtype, device)
    if kernel.keys() != same.keys():
        return [f"tensors {sorted(kernel)} where the reference gives {sorted(same)}"]
    lines = []
    for name, exact in oracle.items():
        if kernel[name].dtype != same[name].dtype:
            lines.append(f"{name}: {kernel[name].dtype}, expected {same[name].dtype}")
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
    """Names of the kernels that are really launched inside the `with` block."""
    names: list[str] = []

    def counting(run: Callable[..., None]) -> Callable[..., None]:
        def counted(arch: Any, kernel: Any, *args: Any, **kwargs: Any) -> None:
            run(arch, kernel, *args, **kwargs)
            names.append(kernel.__name__)

        return counted

    # Only here: it needs triton, which is absent on some machines.
    launching = import_module("spela_kernels.gpu.launching")
    with patch.object(launching, "run", counting(launching.run)):
        yield names
