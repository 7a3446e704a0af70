"""The projection's Triton kernels on a real GPU: parity, graphs, launches, waiting; speed is printed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spela_kernels import projection_adam_, projection_sgd_, use_backend
from spela_kernels.projection.parity import LARGE, Case
from spela_kernels.proof.parity import counted_launches, mismatches
from spela_kernels.selftest import selected_cases
from tests.spela_kernels.on_a_gpu import NEEDS_GPU

pytestmark = NEEDS_GPU
pytest.importorskip("triton")
GPU_CASES = selected_cases("projection", True, False) if torch.cuda.is_available() else {}
SECOND = LARGE["authors-13x13"]
LABEL = ["forward_kernel", "update_kernel"]
SOFTMAX = ["forward_kernel", "classes_kernel", "gradient_kernel", "update_kernel"]


@pytest.mark.parametrize("name", GPU_CASES)
def test_every_tensor_is_as_close_to_float64_as_the_reference(name: str) -> None:
    from spela_kernels.projection import triton_backend

    case = GPU_CASES[name]
    with counted_launches() as launched:
        assert mismatches(triton_backend, case, "cuda") == []
    assert len(launched) >= case.launches, "the reference ran in place of the kernels"


@pytest.mark.parametrize("objective", ["mse", "softmax"])
def test_two_runs_give_the_same_bits(objective: str) -> None:
    from spela_kernels.projection import triton_backend

    case = replace(SECOND, objective=objective)
    first, second = (case.run(triton_backend, case.dtype, "cuda") for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("rule", ["sgd", "adam"])
@pytest.mark.parametrize(("objective", "expected"), [("mse", LABEL), ("softmax", SOFTMAX)])
def test_a_steps_launches_which_never_wait_for_the_gpu(
    rule: str, objective: str, expected: list[str]
) -> None:
    tensors, lr = SECOND.tensors(torch.float32, "cuda"), torch.tensor(0.1, device="cuda")
    first, second = torch.zeros_like(tensors[1]), torch.zeros_like(tensors[1])
    count = torch.ones((), device="cuda")

    def step(rate: float | torch.Tensor) -> None:
        if rule == "sgd":
            projection_sgd_(*tensors, rate, objective=objective)
        else:
            projection_adam_(
                *tensors, rate, exp_avg=first, exp_avg_sq=second, step=count, objective=objective
            )

    step(lr)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with counted_launches() as launched:
            step(lr)
            step(0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert launched == 2 * expected


@pytest.mark.parametrize("objective", ["mse", "softmax"])
def test_a_graph_replays_the_step_with_the_learning_rate_of_the_moment(objective: str) -> None:
    rates = (0.5, 0.25, 0.125)
    expected, captured = (SECOND.tensors(torch.float32, "cuda") for _ in range(2))
    lr = torch.zeros((), device="cuda")
    wanted = [
        projection_sgd_(*expected, torch.tensor(rate, device="cuda"), objective=objective)
        for rate in rates
    ]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        projection_sgd_(*captured, lr, objective=objective)  # a rate of 0 only warms up
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, dz = projection_sgd_(*captured, lr, objective=objective)
    for rate, (loss_then, dz_then) in zip(rates, wanted, strict=True):
        lr.fill_(rate)
        graph.replay()
        assert torch.equal(loss, loss_then)
        assert torch.equal(dz, dz_then)
    assert torch.equal(captured[1], expected[1])


def test_speed_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from spela_kernels.proof.meters import measure_us, replayed

    torch.use_deterministic_algorithms(False)
    case: Case = LARGE["authors-30x30"]
    times = {
        "ours": measure_us(case.fused_step("cuda")),
        "ours, CUDA graph": measure_us(replayed(case.fused_step("cuda"))),
    }
    with use_backend("reference"):
        times["reference"] = measure_us(case.fused_step("cuda"))
    assert all(us > 0 for us in times.values())
    with capsys.disabled():
        figures = ", ".join(f"{name} {us:.1f} us" for name, us in times.items())
        print(f"\n30x30 to 100 at batch 64 on {torch.cuda.get_device_name()}: {figures}")
