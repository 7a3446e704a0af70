"""Part `layers`: a linear layer's step and a projection's, against rivals, a copy and the cost model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from bench.gpu.meters import (
    Step,
    Times,
    add_times,
    copy_gbs,
    find_card,
    flush_buffer,
    release_memory,
    tf32,
)
from bench.gpu.rows import Rows
from bench.gpu.setting import Setting
from spela_kernels.backend import use_backend
from spela_kernels.cost.published_step import published_step
from spela_kernels.cost.roofline import REPLAY_US, Gpu, kernel_us
from spela_kernels.cost.traffic import StepCost
from spela_kernels.gpu.architectures import Architecture
from spela_kernels.gpu.launching import architecture_of
from spela_kernels.linear import configs as linear_configs
from spela_kernels.linear import cost as linear_cost
from spela_kernels.linear import parity as linear
from spela_kernels.objectives import get_objective
from spela_kernels.projection import configs as projection_configs
from spela_kernels.projection import cost as projection_cost
from spela_kernels.projection import parity as projection
from spela_kernels.proof.parity import counted_launches

__all__ = ["linear_model", "measure", "projection_model"]

# B, I, O: the paper's layers, larger batches, and sizes that fill the GPU.
_SIZES = (
    (50, 784, 1024), (50, 1024, 10), (50, 1024, 1024), (512, 1024, 1024), (8192, 1024, 1024),
    (4096, 4096, 4096),
)  # fmt: skip
_COMPILED_BATCH = 512  # up to it there is time for torch.compile
_PROJECTIONS = ("authors-30x30", "authors-13x13", "authors-13x13-softmax")


def linear_model(case: linear.Case) -> linear_cost.Step:
    """An SGD step of a case as the cost model sees it."""
    size, (batch, inputs, outputs, classes) = case.dtype.itemsize, case.sizes
    every = get_objective(case.objective).all_classes
    problem = linear_configs.Problem(batch, inputs, outputs, classes, size, size, all_classes=every)
    return linear_cost.Step(problem)


def projection_model(case: projection.Case) -> projection_cost.Step:
    """Likewise, of a projection."""
    problem = projection_configs.Problem(*case.sizes, itemsize=case.dtype.itemsize)
    return projection_cost.Step(problem, get_objective(case.objective).all_classes)


class _Figures:
    """What a step's times say of bytes and products."""

    def __init__(self, gpu: Gpu | None, copy: float) -> None:
        self.gpu, self.copy = gpu, copy

    def __call__(
        self, times: Times, moved: int, flops: int, cost: StepCost | None
    ) -> dict[str, Any]:
        found: dict[str, Any] = {
            "compulsory_mb": moved / 1e6,
            "cold_gbs": moved / times.cold / 1e3,
            "of_copy_%": 100 * moved / times.cold / 1e3 / self.copy,
            "tflops": flops / times.best / 1e6,
        }
        if self.gpu is None:
            return found
        found["of_peak_gbs_%"] = 100 * moved / times.cold / 1e3 / self.gpu.bandwidth
        if cost is not None:
            peak = self.gpu.peak_tflops(cost.launches[0].product)
            found["of_peak_tflops_%"] = 100 * flops / times.best / 1e6 / peak
            found["modelled_us"] = sum(kernel_us(self.gpu, one, REPLAY_US) for one in cost.launches)
        return found


def _products(case: linear.Case, device: str) -> Step:
    """The floor: the library's forward product and its weight update in place."""
    x, params, _, _ = case.tensors(case.dtype, device)
    weight, bias = params.weight, params.bias
    assert bias is not None
    dz = torch.rand(x.shape[0], weight.shape[0], device=device).to(case.dtype)

    def step() -> None:
        torch.addmm(bias, x, weight.T)
        weight.addmm_(dz.T, x, alpha=1e-9)

    return step


def _rivals(case: linear.Case, device: str) -> dict[str, Callable[[], Step]]:
    def published(compiled: bool) -> Step:
        torch.compiler.reset()  # or it would compile less and less for what it has seen in other shapes
        x, params, vectors, target = case.tensors(case.dtype, device)
        return published_step(x, params.weight, params.bias, vectors, target, compiled=compiled)

    return {
        "ours": lambda: case.fused_step(device),
        "eager SPELA": lambda: published(False),
        "two products": lambda: _products(case, device),
        "two products, tf32": lambda: _products(case, device),
        "torch.compile SPELA": lambda: published(True),
    }


def _launches(make: Callable[[], Step]) -> int:
    step = make()
    with counted_launches() as launched:
        step()
    return len(launched)


def measure(rows: Rows, setting: Setting) -> None:
    """All sizes in both dtypes, the authors' projections, and last what has to be compiled first."""
    flush, copy = flush_buffer(setting), copy_gbs(setting)
    figures, arch = _Figures(find_card(), copy), architecture_of(torch.device(setting.device))
    rows.note(f"A copy on this card moves {copy:.0f} GB/s, reads and writes together.")
    dtypes = (torch.float32, torch.bfloat16)
    cases = [
        linear.Case((*sizes, 10), "log", "leaky_relu", dtype=dtype)
        for dtype in dtypes
        for sizes in setting.pick(_SIZES, ((4, 8, 8),))
    ]
    for case in cases:
        _linear(rows, case, figures, arch, flush, setting, compiled=False)
    known = projection.CASES | projection.LARGE
    for dtype in dtypes:
        for name in setting.pick(_PROJECTIONS, ("ones",)):
            _projection(
                rows, name, replace(known[name], dtype=dtype), figures, arch, flush, setting
            )
    for case in cases:
        if case.sizes[0] <= _COMPILED_BATCH:
            _linear(rows, case, figures, arch, flush, setting, compiled=True)


def _linear(
    rows: Rows, case: linear.Case, figures: _Figures, arch: Architecture, flush: torch.Tensor,
    setting: Setting, *, compiled: bool,
) -> None:  # fmt: skip
    model = linear_model(case)
    cost, moved = linear_cost.step_cost(model, arch), model.compulsory_bytes
    batch, inputs, outputs = case.sizes[:3]
    flops, kind = 4 * batch * inputs * outputs, str(case.dtype).removeprefix("torch.")
    for who, make in _rivals(case, setting.device).items():
        fast = who.endswith("tf32")
        if compiled != who.startswith("torch.compile") or (fast and case.dtype != torch.float32):
            continue
        own = cost if who == "ours" else None
        cells = {"layer": f"{inputs}-{outputs}", "batch": batch, "dtype": kind, "who": who}

        def further(times: Times, own: Any = own, make: Any = make) -> dict[str, Any]:
            found = figures(times, moved, flops, own)
            return found if own is None else {"launches": _launches(make), **found}

        with tf32(fast):
            add_times(rows, "layers", cells, make, flush, setting, further)
    release_memory()


def _projection(
    rows: Rows, name: str, case: projection.Case, figures: _Figures, arch: Architecture,
    flush: torch.Tensor, setting: Setting,
) -> None:  # fmt: skip
    model = projection_model(case)
    cost, moved = projection_cost.step_cost(model, arch), model.compulsory_bytes
    batch, kernels, size, dim = case.sizes[:4]
    flops = 3 * 2 * batch * kernels * size * dim  # p, dz and dP
    kind = str(case.dtype).removeprefix("torch.")
    for who, backend in (("ours", "triton"), ("torch's products", "reference")):
        own = cost if who == "ours" else None
        cells = {"projection": name, "objective": case.objective, "dtype": kind, "who": who}
        with use_backend(backend):
            add_times(
                rows, "projections", cells, lambda: case.fused_step(setting.device), flush, setting,
                lambda times, own=own: figures(times, moved, flops, own),
            )  # fmt: skip
