"""A job compiled to machine code, and its row of the report. No GPU is needed."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.compiler import ASTSource

from spela_kernels.aot.jobs import Job, gpu_target
from spela_kernels.aot.occupancy import MULTIPROCESSORS
from spela_kernels.aot.resources import Resources, amd_resources, nvidia_resources, products

__all__ = ["Row", "compile_job"]

# Static shared memory on sm_90 and newer that is the system's and not counted against the limit.
_RESERVED = 1024


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes:
        kernel, target, label, programs: As in the job.
        num_warps, num_stages: Launch options.
        error: Why there is no machine code, or empty; the rest is then 0 or None.
        resources: Read from the machine code.
        shared: Bytes a program, static and dynamic.
        warps: Warps a multiprocessor holds at once.
        products, fma_products: Matrix products, and parts of them outside matrix units.
    """

    kernel: str
    target: str
    label: str
    programs: int
    num_warps: int
    num_stages: int
    error: str = ""
    resources: Resources | None = None
    shared: int = 0
    warps: int = 0
    products: int = 0
    fma_products: int = 0


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr.strip()[:500]}")
    return done.stdout


def _nvidia(machine_code: bytes) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        usage = _output(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        code = _output(knobs.nvidia.nvdisasm.path, "-c", file.name)
    return nvidia_resources(usage, code)


def _row(job: Job, **values: Any) -> Row:
    options = job.options
    return Row(
        job.kernel, job.target, job.label, job.programs,
        options["num_warps"], options["num_stages"], **values,
    )  # fmt: skip


def compile_job(job: Job) -> Row:
    """Compile, disassemble and count.

    Args:
        job: From `plan` or `specialise`.

    Returns:
        The row; with `error` where a step fails.
    """
    function = getattr(import_module(job.module), job.kernel)
    source = ASTSource(function, job.signature, job.constants, job.hints)
    try:
        compiled = triton.compile(source, target=gpu_target(job.target), options=job.options)
        nvidia = job.target.startswith("sm_")
        if nvidia:
            resources = _nvidia(compiled.asm["cubin"])
        else:
            resources = amd_resources(compiled.asm["amdgcn"])
    except Exception as error:  # a compiler has many, and each is a failed row
        return _row(job, error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    static = resources.static_shared
    if nvidia and int(job.target.removeprefix("sm_")) >= 90:
        static = max(static - _RESERVED, 0)
    # Triton's own shared memory is dynamic: the machine code does not know its size.
    shared = static + compiled.metadata.shared
    product_count, fma_count = products(compiled.asm["ttir"], compiled.asm["ttgir"])
    return _row(
        job,
        resources=resources,
        shared=shared,
        warps=MULTIPROCESSORS[job.target].warps_at_once(
            job.options["num_warps"], resources.registers, shared
        ),
        products=product_count,
        fma_products=fma_count,
    )
