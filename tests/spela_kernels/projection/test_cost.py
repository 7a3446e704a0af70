"""The projection's cost model: its launches are the ones a GPU gets, and few bytes are above the minimum."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from spela_kernels.contracts import Settings
from spela_kernels.cost.roofline import GPUS
from spela_kernels.projection.configs import Problem
from spela_kernels.projection.cost import Step, step_cost
from spela_kernels.projection.types import Call
from spela_kernels.rules import SgdRule
from spela_kernels.rules import Step as Update

# The authors' CIFAR and Fashion-MNIST networks.
AUTHORS = {size: Problem(64, 128, size, 100, 9, 10, 4) for size in (900, 169, 144, 16)}


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("moments", [0, 2], ids=["sgd", "adam"])
@pytest.mark.parametrize("all_classes", [False, True], ids=["mse", "softmax"])
def test_each_launch_moves_each_tensor_once(gpu: str, moments: int, all_classes: bool) -> None:
    cache = GPUS[gpu].cache_bytes
    for problem in AUTHORS.values():
        for launch in step_cost(Step(problem, all_classes, moments), GPUS[gpu].arch).launches:
            once = sum(row.size for row in launch.traffic)
            assert launch.device_bytes(cache) == once, (problem, launch.name)


def test_launches_add_to_the_minimum_only_what_they_hand_on() -> None:
    for gpu, problem, all_classes in product(GPUS, AUTHORS.values(), (False, True)):
        step = Step(problem, all_classes)
        cost = step_cost(step, GPUS[gpu].arch)
        dp = step.rows * problem.dim
        handed = dp + cost.launches[0].programs  # shares of the loss
        if all_classes:
            shares, q = problem.batch, problem.batch * problem.classes
            handed = dp + step.rows * (1 + problem.groups) + shares + q  # norms and cosines
        lr = 1
        moved = cost.device_bytes(cache_bytes=2**60)
        assert moved == step.compulsory_bytes + 4 * (2 * handed + lr), (gpu, problem)


def test_a_cache_too_small_for_them_reads_p_and_z_twice() -> None:
    step = Step(AUTHORS[900])  # P has 46 MB, z 29
    cost = step_cost(step, GPUS["H100"].arch)
    again = 4 * (step.elements + step.rows * 900)
    assert cost.device_bytes(GPUS["H100"].cache_bytes) == cost.device_bytes(2**60) + again
    assert cost.device_bytes(GPUS["MI300X"].cache_bytes) < cost.device_bytes(2**60) + again


def test_the_minimum_by_hand() -> None:
    # B 2, K 3, D 5, E 4; two samples name at most two of the three classes.
    problem = Problem(2, 3, 5, 4, 4, 3, 4)
    z, matrices, p, loss = 2 * 3 * 5, 3 * 5 * 4, 2 * 3 * 4, 1
    label = 4 * (2 * z + 2 * matrices + 3 * 2 * 4 + loss) + 8 * (2 + 3 * 2)
    assert Step(problem).compulsory_bytes == label
    softmax = 4 * (2 * z + 2 * p + 6 * matrices + 3 * 3 * 4 + loss) + 8 * (2 + 3 * 3)
    assert Step(problem, all_classes=True, moments=2).compulsory_bytes == softmax


def _recorded(step: Step, gpu: str) -> list[tuple[str, int]]:
    pytest.importorskip("triton")
    from spela_kernels.gpu.launching import record_launches
    from spela_kernels.projection import triton_backend

    p = step.problem
    own = torch.float32 if p.itemsize == 4 else torch.float16
    z = torch.empty(
        p.batch, p.kernels, p.size, dtype=torch.float16 if step.mixed else own, device="meta"
    )
    matrices, vectors = (
        torch.empty(p.kernels, rows, p.dim, dtype=own, device="meta") for rows in (p.size, p.groups)
    )
    groups = torch.empty(p.kernels, p.classes, dtype=torch.int64, device="meta")
    target = torch.empty(p.batch, dtype=torch.int64, device="meta")
    settings = Settings(objective="softmax" if step.all_classes else "mse")
    lr = torch.empty((), device="meta")
    with record_launches(GPUS[gpu].arch) as recording:
        triton_backend.step_(
            Call(z, matrices, vectors, groups, target, settings), Update(SgdRule(), lr, None, None)
        )
    names = [launch.kernel.__name__.removesuffix("_kernel") for launch in recording.launches]
    return list(zip(names, [launch.programs for launch in recording.launches], strict=True))


@pytest.mark.parametrize("gpu", GPUS)
def test_the_modelled_launches_are_the_recorded_ones(gpu: str) -> None:
    for problem, all_classes, mixed in product(AUTHORS.values(), (False, True), (False, True)):
        step = Step(problem, all_classes, mixed=mixed)
        cost = step_cost(step, GPUS[gpu].arch)
        assert [(launch.name, launch.programs) for launch in cost.launches] == _recorded(step, gpu)


def test_flops_cover_the_products() -> None:
    # No partly filled tile here, so exactly 2 B K D E each, of which the update has two.
    label = step_cost(Step(Problem(64, 128, 1024, 128, 16, 16, 2)), GPUS["H100"].arch)
    product_flops = 2 * 64 * 128 * 1024 * 128
    assert [launch.flops for launch in label.launches] == [product_flops, 2 * product_flops]
    assert {launch.product for launch in label.launches} == {"half"}
    softmax = step_cost(Step(Problem(64, 128, 1024, 128, 16, 16, 2), True), GPUS["H100"].arch)
    scored = 2 * 64 * 128 * 16 * 128
    assert [launch.flops for launch in softmax.launches] == [
        product_flops + scored, 0, scored, 2 * product_flops,
    ]  # fmt: skip
    assert softmax.launches[2].product == "tf32x3"
