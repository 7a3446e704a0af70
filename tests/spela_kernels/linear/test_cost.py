"""The cost model: its launches are the ones a GPU gets, and the step's bytes stay near the minimum."""

from __future__ import annotations

import dataclasses
import json
from itertools import product

import pytest
import torch

from spela_kernels.contracts import Settings
from spela_kernels.cost.roofline import (
    CACHE_SPEED,
    GPUS,
    REPLAY_US,
    WAIT_US,
    find_gpu,
    kernel_us,
    launch_us,
)
from spela_kernels.cost.traffic import LaunchCost, StepCost, Traffic, read
from spela_kernels.linear import cost as linear_cost
from spela_kernels.linear.configs import Problem
from spela_kernels.linear.cost import Step, step_cost
from spela_kernels.linear.types import NO_BUFFERS, Call, Parameters
from spela_kernels.rules import SgdRule
from spela_kernels.rules import Step as Update

PAPER = ((784, 1024), (1024, 10), (784, 1000), (1000, 34), (1024, 1024))
BAR = 1.15


def _ratio(step: Step, gpu: str) -> float:
    cost = step_cost(step, GPUS[gpu].arch)
    return cost.device_bytes(GPUS[gpu].cache_bytes) / step.compulsory_bytes


@pytest.mark.parametrize("gpu", ["A100", "H100"])
@pytest.mark.parametrize("itemsizes", [(4, 4), (2, 2), (2, 4)], ids=["fp32", "16-bit", "mixed"])
@pytest.mark.parametrize("moments", [0, 2], ids=["sgd", "adam"])
@pytest.mark.parametrize("all_classes", [False, True], ids=["log", "softmax"])
def test_a_paper_layer_moves_little_more_than_it_must(
    gpu: str, itemsizes: tuple[int, int], moments: int, all_classes: bool
) -> None:
    for (inputs, outputs), state in product(PAPER, {4, itemsizes[1]}):
        problem = Problem(50, inputs, outputs, 10, *itemsizes, all_classes)
        ratio = _ratio(Step(problem, moments, state_itemsize=state), gpu)
        assert 1 <= ratio <= BAR, (inputs, outputs, state, ratio)


@pytest.mark.parametrize("gpu", ["A100", "H100"])
def test_softmax_over_a_hundred_classes_still_writes_too_many_partials(gpu: str) -> None:
    """The known gap: (T, B, C) partial sums, which SGD has no optimizer state to hide behind."""
    problem = Problem(50, 784, 1024, 100, 4, 4, all_classes=True)
    assert BAR < _ratio(Step(problem), gpu) < 1.16
    assert _ratio(Step(problem, moments=2), gpu) <= BAR


def test_the_minimum_by_hand() -> None:
    # x 2x3, W 4x3, y 2x4, three classes of which two samples can name two; fp32, Adam, bias.
    step = Step(Problem(2, 3, 4, 3, 4, 4), moments=2)
    x, weight, bias, y, vectors, labels, loss = 6, 12, 4, 8, 8, 2, 1
    moved = x + 2 * (weight + bias) + 4 * (weight + bias) + 2 * y + vectors + loss
    assert step.compulsory_bytes == 4 * moved + 8 * labels


def test_re_reads_count_where_half_the_cache_cannot_hold_them() -> None:
    row = Traffic("x", size=100, requested=700, window=60)
    assert [row.device_bytes(cache) for cache in (119, 120)] == [700, 100]
    cost = step_cost(Step(Problem(512, 4096, 4096, 10, 4, 4)), GPUS["A100"].arch)
    # Without a cache every request reaches memory; with an endless one only first reads and writes.
    rows = [row for launch in cost.launches for row in launch.traffic]
    assert cost.device_bytes(0) == sum(row.requested for row in rows)
    first = {(row.tensor, row.write): row.size for row in rows if not row.write}
    written = sum(row.size for row in rows if row.write)
    assert cost.device_bytes(2**60) == sum(first.values()) + written
    # W (64 MiB) does not stay in 40 MiB between forward and update, so it is read twice.
    assert cost.device_bytes(40 * 2**20) >= cost.device_bytes(2**60) + 4096 * 4096 * 4


def _recorded(step: Step, gpu: str) -> list[tuple[str, int]]:
    pytest.importorskip("triton")
    from spela_kernels.gpu.launching import record_launches
    from spela_kernels.linear import triton_backend

    p = step.problem
    dtype = torch.float32 if p.itemsize == 4 else torch.bfloat16
    x, weight, vectors, bias = (
        torch.empty(shape, dtype=dtype, device="meta")
        for shape in ((p.batch, p.inputs), (p.outputs, p.inputs), (p.classes, p.outputs), p.outputs)
    )
    target = torch.empty(p.batch, dtype=torch.int64, device="meta")
    settings = Settings(objective="softmax" if p.all_classes else "log")
    lr = torch.empty((), device="meta")
    with record_launches(GPUS[gpu].arch) as recording:
        triton_backend.step_(
            Call(x, Parameters(weight, bias, None), vectors, target, settings),
            Update(SgdRule(), lr, NO_BUFFERS, NO_BUFFERS),
        )
    names = [launch.kernel.__name__.removesuffix("_kernel") for launch in recording.launches]
    return list(zip(names, [launch.programs for launch in recording.launches], strict=True))


@pytest.mark.parametrize("gpu", GPUS)
def test_the_modelled_launches_are_the_recorded_ones(gpu: str) -> None:
    for (inputs, outputs), itemsize, all_classes in product(PAPER, (4, 2), (False, True)):
        if itemsize == 2 and not GPUS[gpu].arch.has_bf16:
            continue
        step = Step(Problem(50, inputs, outputs, 10, itemsize, itemsize, all_classes))
        cost: StepCost = step_cost(step, GPUS[gpu].arch)
        assert [(launch.name, launch.programs) for launch in cost.launches] == _recorded(step, gpu)


def _step_us(step: Step, gpu: str) -> float:
    return sum(
        kernel_us(GPUS[gpu], one, REPLAY_US) for one in step_cost(step, GPUS[gpu].arch).launches
    )


@pytest.mark.parametrize("gpu", GPUS)
def test_finalise_is_launched_twice_where_that_pays(gpu: str) -> None:
    regrets, saved = [], []
    sizes = product((50, 128, 256, 512, 1024, 4096), (128, 256, 512, 1024, 2048, 4096))
    for (batch, width), classes, itemsize in product(sizes, (10, 34, 100, 300, 1000), (2, 4)):
        step = Step(Problem(batch, 1024, width, classes, itemsize, itemsize, True))
        chosen = _step_us(step, gpu)
        times = []
        for twice in (False, True):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(linear_cost, "finalises_twice", lambda *args, twice=twice: twice)
                times.append(_step_us(step, gpu))
        regrets.append(chosen / min(times) - 1)
        saved.append(1 - chosen / times[0])
    assert sum(regrets) / len(regrets) < 0.03
    assert min(saved) > -0.04  # the worst of the choices costs a twenty-fifth of a step
    assert max(saved) > 0.3


@pytest.mark.parametrize("gpu", GPUS)
def test_two_finalises_are_modelled_where_two_are_recorded(gpu: str) -> None:
    step = Step(Problem(512, 1024, 2048, 1000, 4, 4, True))
    recorded = _recorded(step, gpu)
    assert [name for name, _ in recorded] == ["forward", "finalise", "finalise", "update"]
    modelled = step_cost(step, GPUS[gpu].arch).launches
    assert [(launch.name, launch.programs) for launch in modelled] == recorded


def test_flops_cover_the_products() -> None:
    cost = step_cost(Step(Problem(64, 512, 1024, 10, 2, 2)), GPUS["H100"].arch)
    forward, finalise, update = cost.launches
    # No partly filled tile here, so exactly 2 B I O each.
    assert forward.flops == update.flops == 2 * 64 * 512 * 1024
    assert finalise.flops == 0
    assert {forward.product, update.product} == {"half"}


def test_the_slower_of_memory_and_arithmetic_decides() -> None:
    gpu = find_gpu("h100")
    assert launch_us(gpu, 3_350_000, 0, overhead_us=2) == pytest.approx(1 + 2)
    assert launch_us(gpu, 3_350_000, 66_900_000 * 5, overhead_us=2) == pytest.approx(5 + 2)
    assert launch_us(gpu, 0, 494_700_000, "tf32x3", overhead_us=0) == pytest.approx(3)
    with pytest.raises(ValueError, match="use one of T4, A100"):
        find_gpu("V100")


def test_the_busiest_multiprocessor_and_the_waits_decide() -> None:
    gpu = find_gpu("a100")  # 108 multiprocessors
    traffic = (read("x", 2_039_000, visits=6),)

    def us(programs: int, flops: int = 0, waits: int = 0) -> float:
        launch = LaunchCost("forward", programs, flops, "half", traffic, waits)
        return kernel_us(gpu, launch, overhead_us=0)

    # 1 us of memory, and the cache gives the six visits in twice that; of 109 programs two share one.
    assert us(108) == pytest.approx(6 / CACHE_SPEED)
    assert us(109) == pytest.approx(6 / CACHE_SPEED * 216 / 109)
    assert us(27) == pytest.approx(6 / CACHE_SPEED * 4)
    assert us(27, flops=312_000_000) == pytest.approx(max(6 / CACHE_SPEED, 1) * 4)
    assert us(27, flops=3_120_000_000) == pytest.approx(10 * 4)
    assert us(108, waits=10) == pytest.approx(6 / CACHE_SPEED + 10 * WAIT_US)


@pytest.mark.parametrize("gpu", ["A100", "H100", "B200"])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_programs_of_a_small_batch_wait_few_times(gpu: str, itemsize: int) -> None:
    for batch, inputs, outputs in product((50, 128), (784, 1024), (10, 1024)):
        step = Step(Problem(batch, inputs, outputs, 10, itemsize, itemsize))
        forward, finalise, update = step_cost(step, GPUS[gpu].arch).launches
        assert forward.waits <= 9, (batch, inputs, outputs)
        assert finalise.waits == 3  # squares, labels, dots: of all column tiles together
        assert update.waits <= 9


def test_every_gpu_names_its_source_and_has_tiles() -> None:
    for gpu in GPUS.values():
        assert len(gpu.source) > 20
        assert gpu.arch.name == gpu.architecture
        assert gpu.half > gpu.fp32
    json.dumps([dataclasses.asdict(gpu) for gpu in GPUS.values()])
