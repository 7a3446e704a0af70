"""`python -m spela_kernels.selftest`: are the Triton kernels right, and fast, on this GPU?

Parity against float64 by the rule of `spela_kernels.proof.parity`, launches and peak memory of a step, and
its time beside eager PyTorch and torch.compile. Exit code 0: all passed; 1: something failed; 2: cannot run
here. With TRITON_INTERPRET=1 only parity and launches are checked, on the CPU.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from spela_kernels.backend import use_backend
from spela_kernels.cost.published_step import published_step
from spela_kernels.linear import parity as linear
from spela_kernels.projection import parity as projection
from spela_kernels.proof.meters import measure_memory, measure_us, replayed
from spela_kernels.proof.parity import Case, counted_launches, mismatches

__all__ = [
    "Row",
    "gpu_rows",
    "launch_rows",
    "main",
    "parity_rows",
    "report",
    "selected_cases",
]

SUITES = {"linear": linear, "projection": projection}
SPEED = ((50, 784, 1024), (50, 1024, 10), (50, 1024, 1024), (512, 1024, 1024))
PROJECTION_SPEED = ("authors-30x30", "authors-13x13", "authors-13x13-softmax")
Step = Callable[[], object]


class Row(NamedTuple):
    """One check: what, whether it passed (None: only measured), and the figures."""

    name: str
    passed: bool | None
    detail: str


def selected_cases(op: str, on_gpu: bool, quick: bool) -> dict[str, Case]:
    """An op's cases by name: each in float32, float16 and, on a GPU that has it, bfloat16.

    Args:
        op: A key of `SUITES`.
        on_gpu: False in the interpreter, whose bfloat16 products are wrong and which is slow.
        quick: A small choice.

    Returns:
        Names such as `linear prelu/float16`.

    Example:
        >>> list(selected_cases("linear", on_gpu=False, quick=True))[0]
        'linear ones/float32'
    """
    suite = SUITES[op]
    cases = {name: suite.CASES[name] for name in suite.QUICK} if quick else suite.CASES
    if not on_gpu:
        return {f"{op} {name}/{_name(case.dtype)}": case for name, case in cases.items()}
    dtypes = [torch.float32, torch.float16]
    if torch.cuda.is_bf16_supported(including_emulation=False):
        dtypes.append(torch.bfloat16)
    return {
        f"{op} {name.removesuffix('-fp16')}/{_name(dtype)}": replace(case, dtype=dtype)
        for name, case in (cases | suite.LARGE).items()
        for dtype in dtypes
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _checked(name: str, check: Callable[[], tuple[bool | None, str]], counts: bool = True) -> Row:
    """The row of a check; one that raises has failed, or if it does not count, says so."""
    try:
        return Row(name, *check())
    except Exception as error:  # whatever a GPU or its compiler raises belongs in the report
        return Row(name, False if counts else None, f"{type(error).__name__}: {error}")


def parity_rows(cases: dict[str, Case], device: str) -> list[Row]:
    """Every tensor an op computes against float64; a case that no kernel ran has failed.

    Args:
        cases: By name.
        device: cuda, or cpu in the interpreter.

    Returns:
        One row a case.
    """

    def check(case: Case) -> tuple[bool, str]:
        backend = import_module(f"spela_kernels.{case.op}.triton_backend")
        with counted_launches() as launched:
            lines = mismatches(backend, case, device)
        if len(launched) < case.launches:
            lines = ["the reference ran in place of the kernels", *lines]
        return not lines, "; ".join(lines) or "ok"

    return [_checked(f"parity {name}", partial(check, case)) for name, case in cases.items()]


def _steps(case: linear.Case, device: str) -> dict[str, Step]:
    """One SGD step of a layer: ours, and the rivals' on tensors of their own."""

    def rival(compiled: bool = False) -> Step:
        x, params, vectors, target = case.tensors(case.dtype, device)
        tensors = (x, params.weight, params.bias, vectors, target)
        return published_step(*tensors, objective=case.objective, compiled=compiled)

    return {"ours": case.fused_step(device), "eager": rival(), "compiled": rival(True)}


def launch_rows(device: str) -> list[Row]:
    """A step's launches: three of a layer, whatever the objective; two or four of a projection."""

    def check(case: Case) -> tuple[bool, str]:
        step = case.fused_step(device)
        with counted_launches() as launched:
            step()
        return len(launched) == case.launches, ", ".join(launched)

    cases: tuple[Case, ...] = (
        linear.CASES["paper-head-fp16"],
        linear.CASES["several-blocks-fp16"],
        projection.CASES["paper-fp16"],
        projection.CASES["several-blocks-fp16"],
    )
    return [
        _checked(f"launches {case.op} {case.objective}", partial(check, case)) for case in cases
    ]


def _memory(steps: dict[str, Step]) -> tuple[bool, str]:
    ours, eager = measure_memory(steps["ours"]), measure_memory(steps["eager"])
    return ours <= eager, f"{ours / 1e6:.2f} MB, eager {eager / 1e6:.2f} MB"


def gpu_rows(quick: bool) -> list[Row]:
    """Peak memory, which must not exceed eager's, and times, which are only measured."""
    rows = []
    for dtype in (torch.float32,) if quick else (torch.float32, torch.float16):
        for batch, inputs, outputs in SPEED[:1] if quick else SPEED:
            case = linear.Case((batch, inputs, outputs, 10), "log", "leaky_relu", dtype=dtype)
            name, steps = f"{inputs}-{outputs} b{batch} {_name(dtype)}", _steps(case, "cuda")
            rows.append(_checked(f"memory {name}", partial(_memory, steps)))
            for rival, step in steps.items():
                # A rival that torch cannot compile here is no failure of ours.
                rows.append(
                    _checked(f"time {name} {rival}", partial(_time, step), counts=rival == "ours")
                )
            graph = partial(_graph_time, steps["ours"])
            rows.append(_checked(f"time {name} ours in a CUDA graph", graph))
        for name in PROJECTION_SPEED[:1] if quick else PROJECTION_SPEED:
            step = replace(projection.LARGE[name], dtype=dtype).fused_step("cuda")
            name = f"projection {name} {_name(dtype)}"
            rows.append(_checked(f"time {name} ours", partial(_time, step)))
            rows.append(_checked(f"time {name} reference", partial(_reference_time, step)))
    return rows


def _reference_time(step: Step) -> tuple[None, str]:
    with use_backend("reference"):
        return _time(step)


def _time(step: Step) -> tuple[None, str]:
    return None, f"{measure_us(step):.1f} us"


def _graph_time(step: Step) -> tuple[None, str]:
    return _time(replayed(step))


def _machine(device: str) -> str:
    where = "Triton's interpreter on the CPU (says nothing about speed)"
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        where = f"{properties.name}, {properties.multi_processor_count} multiprocessors"
    triton = import_module("triton").__version__
    return (
        f"torch {torch.__version__}, triton {triton}, Python {platform.python_version()}; {where}"
    )


def report(rows: Sequence[Row], machine: str) -> str:
    """The rows as markdown, to paste into an issue.

    Args:
        rows: Checks and measurements.
        machine: Versions and device.

    Returns:
        A table and a last line that begins with PASS or FAIL.

    Example:
        >>> report([Row("parity ones", False, "y: error 1")], "cpu").splitlines()[-1]
        'FAIL: 1 of 1 checks failed'
    """
    marks = {True: "pass", False: "FAIL", None: "-"}
    checks = [row for row in rows if row.passed is not None]
    failed = sum(not row.passed for row in checks)
    verdict = f"PASS: {len(checks)} checks"
    if failed:
        verdict = f"FAIL: {failed} of {len(checks)} checks failed"
    table = [
        f"| {row.name} | {marks[row.passed]} | {' '.join(row.detail.replace('|', '/').split())} |"
        for row in rows
    ]
    head = ["### spela_kernels self-test", "", machine, "", "| check | result | figures |"]
    return "\n".join([*head, "|---|---|---|", *table, "", verdict])


def _device() -> str:
    if find_spec("triton") is None:
        raise ValueError("triton is not installed: pip install triton (Linux)")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "cpu"
    if not torch.cuda.is_available():
        raise ValueError(
            "torch sees no GPU: run this where it does, or set TRITON_INTERPRET=1 to check the "
            "kernels' arithmetic on the CPU"
        )
    return "cuda"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the self-test and print its report.

    Args:
        arguments: Of the command line; None: the process's own.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser("python -m spela_kernels.selftest", description=__doc__)
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    parser.add_argument("--quick", action="store_true", help="a few cases only")
    options = parser.parse_args(arguments)
    try:
        device = _device()
        if options.out is not None and not options.out.parent.is_dir():
            raise ValueError(f"--out {options.out}: the folder {options.out.parent} does not exist")
    except ValueError as error:
        print(f"spela_kernels: error: {error}", file=sys.stderr)
        return 2
    rows = []
    for op in SUITES:
        rows += parity_rows(selected_cases(op, device == "cuda", options.quick), device)
    with use_backend("triton"):
        rows += launch_rows(device)
        if device == "cuda":
            rows += gpu_rows(options.quick)
    text = report(rows, _machine(device))
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0 if all(row.passed is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
