"""From cases to jobs: calls recorded, specialised as Triton's launcher would, each distinct one once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import jit

from spela_kernels.aot.cases import CaseGenerator
from spela_kernels.aot.linear_cases import linear_cases
from spela_kernels.aot.projection_cases import projection_cases
from spela_kernels.gpu.architectures import ARCHITECTURES, Architecture
from spela_kernels.gpu.launching import Launch, record_launches

__all__ = ["CASE_GENERATORS", "Job", "gpu_target", "plan", "specialise"]

# A new op adds its generator here.
CASE_GENERATORS: tuple[CaseGenerator, ...] = (linear_cases, projection_cases)


@dataclass(frozen=True)
class Job:
    """One program to compile, as plain data that can travel to another process.

    Attributes:
        module, kernel: Where the @triton.jit function is.
        target: A name from `ARCHITECTURES`.
        label: The first case that needs it.
        programs: Of that case's launch.
        signature, constants, hints: What ASTSource takes.
        options: Warps, stages, registers.
    """

    module: str
    kernel: str
    target: str
    label: str
    programs: int
    signature: dict[str, Any]
    constants: dict[Any, Any]
    hints: dict[Any, Any]
    options: dict[str, int]

    @property
    def identity(self) -> str:
        """Equal for launches that Triton would compile once."""
        program = (self.signature, self.constants, self.hints, self.options)
        return repr((self.module, self.kernel, self.target, *program))


def gpu_target(name: str) -> GPUTarget:
    """Triton's description of a GPU.

    Args:
        name: A name from `ARCHITECTURES`.

    Example:
        >>> gpu_target("sm_90").warp_size, gpu_target("gfx942").warp_size
        (32, 64)
    """
    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name.removeprefix("sm_")), 32)
    return GPUTarget("hip", name, 64)


def specialise(launch: Launch, target: str, label: str) -> Job:
    """The job that Triton would make of a launch, by its own binder.

    Args:
        launch: A recorded launch.
        target: A name from `ARCHITECTURES`.
        label: What to call it.

    Returns:
        The job.

    Raises:
        RuntimeError: Where the binder is not what Triton 3.6 to 3.9 have, or TRITON_INTERPRET is set.
    """
    kernel = launch.kernel
    if not isinstance(kernel, jit.JITFunction):
        raise RuntimeError("kernels are interpreted here: unset TRITON_INTERPRET to compile them")
    if not (hasattr(jit, "create_function_from_signature") and hasattr(kernel, "_pack_args")):
        raise RuntimeError(
            f"Triton {triton.__version__} specialises arguments in an unknown way: use 3.6 to 3.9"
        )
    backend = make_backend(gpu_target(target))
    bind = jit.create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialisation, options = bind(*launch.arguments, **launch.options)
    _, signature, constants, hints = kernel._pack_args(
        backend, launch.options, bound, specialisation, options
    )
    return Job(
        kernel.__module__, kernel.__name__, target, label, launch.programs,
        signature, constants, hints, launch.options,
    )  # fmt: skip


def _recorded(arch: Architecture, everything: bool, cases: str) -> Iterator[tuple[str, Launch]]:
    for case in chain.from_iterable(op(arch, everything) for op in CASE_GENERATORS):
        if cases not in case.label:
            continue
        with record_launches(arch, case.fallbacks) as recording:
            case.call()
        for launch in recording.launches:
            yield case.label, launch


def plan(
    targets: tuple[str, ...] = tuple(ARCHITECTURES),
    *,
    everything: bool = False,
    kernels: tuple[str, ...] = (),
    cases: str = "",
) -> list[Job]:
    """The programs to compile.

    Args:
        targets: Names from `ARCHITECTURES`.
        everything: All cases, rather than a few that reach every kernel.
        kernels: Only these; empty for all.
        cases: Only cases with this in their label.

    Returns:
        Distinct jobs, target by target.

    Raises:
        ValueError: If a target or kernel is unknown.

    Example:
        >>> sorted({job.kernel for job in plan(("sm_80",))})
        ['classes_kernel', 'finalise_kernel', 'forward_kernel', 'gradient_kernel', 'update_kernel']
    """
    if not targets:
        raise ValueError(f"no target: use some of {', '.join(ARCHITECTURES)}")
    unknown = set(targets) - set(ARCHITECTURES)
    if unknown:
        raise ValueError(
            f"unknown target {', '.join(sorted(unknown))}: use {', '.join(ARCHITECTURES)}"
        )
    jobs: dict[str, Job] = {}
    seen = set()
    for target in targets:
        for label, launch in _recorded(ARCHITECTURES[target], everything, cases):
            seen.add(launch.kernel.__name__)
            if not kernels or launch.kernel.__name__ in kernels:
                job = specialise(launch, target, label)
                jobs.setdefault(job.identity, job)
    if seen and set(kernels) - seen:
        absent = ", ".join(sorted(set(kernels) - seen))
        raise ValueError(f"unknown kernel {absent}: use {', '.join(sorted(seen))}")
    return list(jobs.values())
