"""The cost model against the kernels themselves: every load and store of a step, counted as it is made."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from spela_kernels.architectures import find_architecture
from spela_kernels.contracts import Settings
from spela_kernels.linear import launch, triton_backend
from spela_kernels.linear.configs import Problem
from spela_kernels.linear.cost import Step, StepCost, step_cost
from spela_kernels.linear.types import Parameters
from spela_kernels.rules import AdamRule, SgdRule

Counts = dict[
    tuple[str, bool], tuple[int, int]
]  # (tensor, written): bytes touched, bytes requested

STEPS = {
    "log": Step(Problem(130, 120, 100, 10, 4, 4)),
    "fp16-adam": Step(Problem(70, 136, 200, 7, 2, 2), moments=2),
    "mixed": Step(Problem(70, 72, 140, 7, 2, 4), moments=1),
    "gelu-momentum": Step(Problem(50, 40, 66, 3, 4, 4), moments=1, bias=False, keeps_input=True),
    "softmax": Step(Problem(70, 136, 200, 33, 4, 4, all_classes=True), moments=1),
    "softmax-gelu-mixed": Step(Problem(33, 65, 140, 50, 2, 4, all_classes=True), keeps_input=True),
}


class _Meter:
    """Stands in for the interpreter's memory: notes which bytes of which tensor each launch touches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.launches: list[Counts] = []
        builder, run = interpreter.interpreter_builder, launch.run
        load, store = builder.create_masked_load, builder.create_masked_store
        self.touched: dict[tuple[str, bool], list[np.ndarray]] = defaultdict(list)
        self.reads: list[list[tuple[np.ndarray, int]]] = []  # of each launch, in order
        self.itemsizes: dict[str, int] = {}
        self.ranges: list[tuple[int, int, str]] = []

        def loading(ptrs: Any, mask: Any, *rest: Any) -> Any:
            self.note(ptrs, mask, False)
            return load(ptrs, mask, *rest)

        def storing(ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self.note(ptrs, mask, True)
            return store(ptrs, value, mask, *rest)

        def running(arch: Any, kernel: Any, programs: int, arguments: Any, *rest: Any) -> None:
            self.begin(kernel.arg_names, arguments)
            run(arch, kernel, programs, arguments, *rest)
            self.launches.append(self.end())

        monkeypatch.setattr(builder, "create_masked_load", loading)
        monkeypatch.setattr(builder, "create_masked_store", storing)
        monkeypatch.setattr(launch, "run", running)

    def begin(self, names: list[str], arguments: tuple[Any, ...]) -> None:
        self.touched.clear()
        self.reads.append([])
        named: dict[int, tuple[str, Tensor]] = {}
        for name, tensor in zip(names, arguments, strict=False):
            if isinstance(tensor, Tensor):  # dz is also passed as y: the later name is its own
                label = name.removesuffix("_ptr").replace("_first", ".first")
                named[tensor.data_ptr()] = (label.replace("_second", ".second"), tensor)
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
    p = step.problem
    dtype, params_dtype = (
        torch.float32 if size == 4 else torch.float16 for size in (p.itemsize, p.weight_itemsize)
    )
    g = torch.Generator().manual_seed(0)
    x = torch.randn(p.batch, p.inputs, generator=g).to(dtype)
    weight, vectors = (
        torch.randn(shape, generator=g).to(params_dtype)
        for shape in ((p.outputs, p.inputs), (p.classes, p.outputs))
    )
    bias = torch.zeros(p.outputs, dtype=params_dtype) if step.bias else None
    params = Parameters(weight, bias, None)
    first, second = (
        Parameters(*(None if t is None else torch.zeros(t.shape) for t in params))  # type: ignore[arg-type]
        for _ in range(2)
    )
    target = torch.arange(p.batch) % p.classes  # every class occurs
    objective = "softmax" if p.all_classes else "log"
    settings = Settings("gelu" if step.keeps_input else "leaky_relu", objective=objective)
    tensors = (x, params, vectors, target, settings)
    lr = torch.tensor(0.1)
    if step.moments == 2:
        triton_backend.adam_step_(*tensors, first, second, torch.tensor(1.0), lr, AdamRule())
    else:
        buffers, rule = (first, SgdRule(0.9)) if step.moments else (None, SgdRule())
        triton_backend.sgd_step_(*tensors, buffers, lr, rule)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_the_model_counts_the_bytes_that_the_kernels_ask_for(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = _Meter(monkeypatch)
    _run(step)
    # The interpreter's own choice: one multiprocessor, so the largest tiles.
    model = step_cost(step, find_architecture("sm_80", multiprocessors=1))
    assert len(meter.launches) == len(model.launches) == 3
    for counted, modelled in zip(meter.launches, model.launches, strict=True):
        expected = {(row.tensor, row.write): (row.size, row.requested) for row in modelled.traffic}
        assert counted == expected, modelled.name
    assert any(row.requested > row.size for row in model.launches[0].traffic)
    assert all(launch.programs > 1 for launch in (model.launches[0], model.launches[2]))


_Trace = tuple[list[list[tuple[np.ndarray, int]]], StepCost]


@pytest.fixture(scope="module")
def traces() -> dict[str, _Trace]:
    """Every read of a step's launches, in order, and the model of the step."""
    found = {}
    for name, problem in {
        "log": Problem(130, 96, 120, 10, 4, 4),
        "softmax": Problem(40, 64, 140, 33, 4, 4, all_classes=True),
    }.items():
        with pytest.MonkeyPatch.context() as patch:
            meter = _Meter(patch)
            _run(Step(problem))
        found[name] = (
            meter.reads,
            step_cost(Step(problem), find_architecture("sm_80", multiprocessors=1)),
        )
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
@pytest.mark.parametrize("name", ["log", "softmax"])
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
