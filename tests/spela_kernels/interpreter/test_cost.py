"""The cost models against the kernels themselves: every load and store of a step, counted as it is made."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from spela_kernels.contracts import Settings
from spela_kernels.cost.traffic import StepCost
from spela_kernels.gpu import launching
from spela_kernels.gpu.architectures import find_architecture
from spela_kernels.linear import cost as linear_cost
from spela_kernels.linear import triton_backend as linear_backend
from spela_kernels.linear.configs import Problem as LinearProblem
from spela_kernels.linear.types import NO_BUFFERS, Parameters
from spela_kernels.linear.types import Call as LinearCall
from spela_kernels.projection import cost as projection_cost
from spela_kernels.projection import triton_backend as projection_backend
from spela_kernels.projection.configs import Problem
from spela_kernels.projection.types import Call as ProjectionCall
from spela_kernels.rules import AdamRule, SgdRule
from spela_kernels.rules import Step as Update

Counts = dict[
    tuple[str, bool], tuple[int, int]
]  # (tensor, written): bytes touched, bytes requested

Layer, Projection = linear_cost.Step, projection_cost.Step
Step = Layer | Projection
_Softmax = partial(LinearProblem, all_classes=True)

STEPS: dict[str, Step] = {
    "log": Layer(LinearProblem(130, 120, 100, 10, 4, 4)),
    "fp16-adam": Layer(LinearProblem(70, 136, 200, 7, 2, 2), moments=2),
    "mixed": Layer(LinearProblem(70, 72, 140, 7, 2, 4), moments=1),
    "gelu-momentum": Layer(
        LinearProblem(50, 40, 66, 3, 4, 4), moments=1, bias=False, keeps_input=True
    ),
    "softmax": Layer(_Softmax(70, 136, 200, 33, 4, 4), moments=1),
    "softmax-finalised-twice": Layer(_Softmax(130, 40, 200, 100, 4, 4), keeps_input=True),
    "softmax-gelu-mixed": Layer(_Softmax(33, 65, 140, 50, 2, 4), keeps_input=True),
    "projection": Projection(Problem(70, 3, 77, 100, 9, 10, 4)),
    "projection-few-samples-fp16-adam": Projection(Problem(6, 2, 65, 36, 9, 10, 2), moments=2),
    "projection-mixed": Projection(Problem(40, 3, 36, 70, 4, 10, 4), moments=1, mixed=True),
    "projection-softmax": Projection(Problem(70, 3, 77, 100, 9, 37, 4), True, moments=2),
    "projection-softmax-fp16": Projection(Problem(70, 3, 100, 36, 20, 30, 2), True),
    "projection-softmax-long-rows": Projection(
        Problem(35, 2, 40, 200, 5, 11, 4), True, moments=1, mixed=True
    ),
}


class _Meter:
    """Stands in for the interpreter's memory: notes which bytes of which tensor each launch touches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.launches: list[Counts] = []
        self.loads: list[int] = []  # instructions of all programs, of each launch
        builder = interpreter.interpreter_builder
        load, store = builder.create_masked_load, builder.create_masked_store
        self.touched: dict[tuple[str, bool], list[np.ndarray]] = defaultdict(list)
        self.reads: list[list[tuple[np.ndarray, int]]] = []  # of each launch, in order
        self.itemsizes: dict[str, int] = {}
        self.ranges: list[tuple[int, int, str]] = []

        def loading(ptrs: Any, mask: Any, *rest: Any) -> Any:
            self.loads[-1] += 1
            self.note(ptrs, mask, False)
            return load(ptrs, mask, *rest)

        def storing(ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self.note(ptrs, mask, True)
            return store(ptrs, value, mask, *rest)

        def running(run: Callable[..., None]) -> Callable[..., None]:
            def measured(arch: Any, kernel: Any, programs: int, arguments: Any, *rest: Any) -> None:
                self.begin(kernel.arg_names, arguments)
                run(arch, kernel, programs, arguments, *rest)
                self.launches.append(self.end())

            return measured

        monkeypatch.setattr(builder, "create_masked_load", loading)
        monkeypatch.setattr(builder, "create_masked_store", storing)
        monkeypatch.setattr(launching, "run", running(launching.run))

    def begin(self, names: list[str], arguments: tuple[Any, ...]) -> None:
        self.touched.clear()
        self.reads.append([])
        self.loads.append(0)
        named: dict[int, tuple[str, Tensor]] = {}
        for name, tensor in zip(names, arguments, strict=False):
            if isinstance(tensor, Tensor):  # dz is also passed as y: the later name is its own
                label = name.removesuffix("_ptr").replace("_first", ".first")
                label = label.replace("_second", ".second").replace("output", "projection")
                named[tensor.data_ptr()] = (label, tensor)
        self.ranges = [(at, at + t.nbytes, name) for at, (name, t) in named.items()]
        self.itemsizes = {name: t.element_size() for name, t in named.values()}

    def note(self, ptrs: Any, mask: Any, written: bool) -> None:
        addresses = np.broadcast_to(ptrs.data, mask.data.shape)[mask.data.astype(bool)].ravel()
        if addresses.size:
            name = next(n for start, end, n in self.ranges if start <= addresses[0] < end)
            self.touched[name, written].append(addresses)
            if not written:
                self.reads[-1].append((addresses, self.itemsizes[name]))

    def end(self) -> Counts:
        counts = {}
        for (name, written), parts in self.touched.items():
            addresses, size = np.concatenate(parts), self.itemsizes[name]
            counts[name, written] = (len(np.unique(addresses)) * size, len(addresses) * size)
        return counts


def _run(step: Step) -> None:
    """The step on tensors in which every class and every group occurs."""
    if isinstance(step, Layer):
        _run_layer(step)
    else:
        _run_projection(step)


def _model(step: Step) -> StepCost:
    """With the interpreter's own choice of tiles: for one multiprocessor, so the largest."""
    arch = find_architecture("sm_80", multiprocessors=1)
    if isinstance(step, Layer):
        return linear_cost.step_cost(step, arch)
    return projection_cost.step_cost(step, arch)


def _take(backend: ModuleType, moments: int, call: Any, buffers: list[Any], none: Any) -> None:
    rules = (SgdRule(), SgdRule(0.9), AdamRule())
    first, second = (*buffers[:moments], none, none)[:2]
    number = torch.tensor(1.0) if moments == 2 else None
    backend.step_(call, Update(rules[moments], torch.tensor(0.1), first, second, number))


def _dtypes(*itemsizes: int) -> list[torch.dtype]:
    return [torch.float32 if size == 4 else torch.float16 for size in itemsizes]


def _run_projection(step: Projection) -> None:
    p = step.problem
    dtype, own = _dtypes(step.itemsize, p.itemsize)
    g = torch.Generator().manual_seed(0)
    z = torch.randn(p.batch, p.kernels, p.size, generator=g).to(dtype)
    matrices, vectors = (
        torch.randn(p.kernels, rows, p.dim, generator=g).to(own) for rows in (p.size, p.groups)
    )
    groups = (torch.arange(p.classes) % p.groups).repeat(p.kernels, 1)
    target = torch.arange(p.batch) % p.classes
    settings = Settings(objective="softmax" if step.all_classes else "log")
    buffers = [torch.zeros(matrices.shape) for _ in range(2)]
    call = ProjectionCall(z, matrices, vectors, groups, target, settings)
    _take(projection_backend, step.moments, call, buffers, None)


def _run_layer(step: Layer) -> None:
    p = step.problem
    dtype, params_dtype = _dtypes(p.itemsize, p.weight_itemsize)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(p.batch, p.inputs, generator=g).to(dtype)
    weight, vectors = (
        torch.randn(shape, generator=g).to(params_dtype)
        for shape in ((p.outputs, p.inputs), (p.classes, p.outputs))
    )
    bias = torch.zeros(p.outputs, dtype=params_dtype) if step.bias else None
    params = Parameters(weight, bias, None)
    buffers = [tuple(None if t is None else torch.zeros(t.shape) for t in params) for _ in range(2)]
    target = torch.arange(p.batch) % p.classes
    objective = "softmax" if p.all_classes else "log"
    settings = Settings("gelu" if step.keeps_input else "leaky_relu", objective=objective)
    call = LinearCall(x, params, vectors, target, settings)
    _take(linear_backend, step.moments, call, buffers, NO_BUFFERS)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_the_model_counts_the_bytes_that_the_kernels_ask_for(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = _Meter(monkeypatch)
    _run(step)
    model = _model(step)
    assert len(meter.launches) == len(model.launches)
    for counted, modelled in zip(meter.launches, model.launches, strict=True):
        expected = {(row.tensor, row.write): (row.size, row.requested) for row in modelled.traffic}
        assert counted == expected, modelled.name
    for loads, modelled in zip(meter.loads, model.launches, strict=True):
        # Loads that are in flight together are one wait.
        assert modelled.waits * modelled.programs <= loads, modelled.name
    assert any(row.requested > row.size for row in model.launches[0].traffic)
    assert all(launch.programs > 1 for launch in (model.launches[0], model.launches[-1]))


TRACED: dict[str, Step] = {
    "log": Layer(LinearProblem(130, 96, 120, 10, 4, 4)),
    "softmax": Layer(_Softmax(40, 64, 140, 33, 4, 4)),
    "softmax-finalised-twice": Layer(_Softmax(90, 24, 200, 100, 4, 4)),
    "projection": Projection(Problem(70, 2, 65, 70, 9, 10, 4)),
    "projection-softmax": Projection(Problem(35, 2, 65, 70, 9, 37, 4), True),
}
_Trace = tuple[list[list[tuple[np.ndarray, int]]], StepCost]


@pytest.fixture(scope="module")
def traces() -> dict[str, _Trace]:
    """Every read of a step's launches, in order, and the model of the step."""
    found = {}
    for name, step in TRACED.items():
        with pytest.MonkeyPatch.context() as patch:
            meter = _Meter(patch)
            _run(step)
        found[name] = (meter.reads, _model(step))
    return found


def _missed(reads: list[tuple[np.ndarray, int]], cache_bytes: int) -> int:
    """Bytes that a cache of elements, the least recently used dropped first, has to fetch."""
    held: OrderedDict[int, int] = OrderedDict()
    used = missed = 0
    for addresses, size in reads:
        for address in addresses.tolist():
            if address in held:
                held.move_to_end(address)
                continue
            held[address] = size
            missed, used = missed + size, used + size
            while used > cache_bytes:
                used -= held.popitem(last=False)[1]
    return missed


@pytest.mark.parametrize("cache_kib", [4096, 160, 96, 48, 32, 1])
@pytest.mark.parametrize("name", TRACED)
def test_a_simulated_cache_fetches_no_more_than_the_model_says(
    name: str, cache_kib: int, traces: dict[str, _Trace]
) -> None:
    reads, model = traces[name]
    cache = cache_kib * 1024
    for launch_reads, launch_cost in zip(reads, model.launches, strict=True):
        modelled = sum(r.device_bytes(cache) for r in launch_cost.traffic if not r.write)
        assert _missed(launch_reads, cache) <= modelled
        assert modelled == _missed(launch_reads, cache) or cache_kib < 4096
    written = sum(r.size for cost in model.launches for r in cost.traffic if r.write)
    missed = _missed([read for launch_reads in reads for read in launch_reads], cache)
    assert missed + written <= model.device_bytes(cache)
    assert missed + written == model.device_bytes(cache) or cache_kib < 4096
