"""The Triton kernels on a real GPU: parity, streams, graphs, launches, waiting, memory; speed is printed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spela_kernels import linear_adam_, linear_sgd_
from spela_kernels.cost.published_step import published_step
from spela_kernels.linear import Parameters
from spela_kernels.linear.parity import Case
from spela_kernels.proof.parity import counted_launches, mismatches
from spela_kernels.selftest import selected_cases
from tests.spela_kernels.on_a_gpu import NEEDS_GPU

pytestmark = NEEDS_GPU
pytest.importorskip("triton")
GPU_CASES = selected_cases("linear", True, False) if torch.cuda.is_available() else {}
PAPER = Case((50, 784, 1024, 10), "log", "leaky_relu")
Tensors = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]


def _tensors(case: Case = PAPER, device: str = "cuda") -> Tensors:
    x, params, vectors, target = case.tensors(case.dtype, device)
    return x, params.weight, params.bias, vectors, target


@pytest.mark.parametrize("name", GPU_CASES)
def test_every_tensor_is_as_close_to_float64_as_the_reference(name: str) -> None:
    from spela_kernels.linear import triton_backend

    with counted_launches() as launched:
        assert mismatches(triton_backend, GPU_CASES[name], "cuda") == []
    assert len(launched) >= 3, "the reference ran in place of the kernels"


def test_two_runs_give_the_same_bits() -> None:
    from spela_kernels.linear import triton_backend

    first, second = (PAPER.run(triton_backend, PAPER.dtype, "cuda") for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_torchs_tf32_switch_changes_nothing() -> None:
    from spela_kernels.linear import triton_backend

    exact = PAPER.run(triton_backend, PAPER.dtype, "cuda")
    torch.backends.cuda.matmul.allow_tf32 = True
    fast = PAPER.run(triton_backend, PAPER.dtype, "cuda")
    for name, tensor in exact.items():
        assert torch.equal(tensor, fast[name]), name


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_on_another_than_the_current_gpu() -> None:
    here, there = _tensors(), _tensors(device="cuda:1")
    expected, result = (linear_sgd_(*tensors, 0.1) for tensors in (here, there))
    assert torch.cuda.current_device() == 0
    assert result[1].device == torch.device("cuda:1")
    torch.testing.assert_close(result[1].cpu(), expected[1].cpu(), rtol=0, atol=0)
    torch.testing.assert_close(there[1].cpu(), here[1].cpu(), rtol=0, atol=0)


def test_a_side_stream_is_honoured() -> None:
    """Input that arrives late on a side stream: a launch on the default stream would read too early."""
    expected, late = _tensors(), _tensors()
    linear_sgd_(*expected, 0.1)
    x, values = late[0], late[0].clone()
    linear_sgd_(*_tensors(), 0.1)  # compiled before the race
    x.fill_(float("nan"))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        x.copy_(values)
        linear_sgd_(*late, 0.1)
    torch.cuda.current_stream().wait_stream(side)
    torch.testing.assert_close(late[1], expected[1], rtol=0, atol=0)


def test_a_graph_replays_the_step_with_the_learning_rate_of_the_moment() -> None:
    rates = (0.5, 0.25, 0.125)
    expected, captured = _tensors(), _tensors()
    lr = torch.zeros((), device="cuda")
    losses = [linear_sgd_(*expected, torch.tensor(rate, device="cuda"))[0] for rate in rates]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        linear_sgd_(*captured, lr)  # a rate of 0 only warms up
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, _ = linear_sgd_(*captured, lr)
    for rate, wanted in zip(rates, losses, strict=True):
        lr.fill_(rate)
        graph.replay()
        assert torch.equal(loss, wanted)
    assert torch.equal(captured[1], expected[1])
    assert torch.equal(captured[2], expected[2])  # type: ignore[arg-type]


def _adam(tensors: Tensors, lr: float | Tensor) -> Callable[[], object]:
    moments = [
        Parameters(torch.zeros_like(tensors[1]), torch.zeros_like(tensors[1][:, 0]), None)
        for _ in range(2)
    ]
    step = torch.ones((), device="cuda")
    return lambda: linear_adam_(
        *tensors, lr, exp_avgs=moments[0], exp_avg_sqs=moments[1], step=step
    )


@pytest.mark.parametrize("kind", ["sgd", "sgd, lr as tensor", "softmax", "adam"])
def test_a_step_is_three_launches_and_never_waits_for_the_gpu(kind: str) -> None:
    tensors, lr = _tensors(), torch.tensor(0.1, device="cuda")
    step = {
        "sgd": lambda: linear_sgd_(*tensors, 0.1),
        "sgd, lr as tensor": lambda: linear_sgd_(*tensors, lr),
        "softmax": lambda: linear_sgd_(*tensors, lr, objective="softmax"),
        "adam": _adam(tensors, 0.1),
    }[kind]
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with counted_launches() as launched:
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert launched == ["forward_kernel", "finalise_kernel", "update_kernel"]


def test_a_step_allocates_no_gradient() -> None:
    """y, partial sums and row scalars only: less than a weight, where eager needs more than one."""
    from spela_kernels.proof.meters import measure_memory

    torch.use_deterministic_algorithms(False)
    ours, rival = _tensors(), _tensors()
    weight_bytes = ours[1].numel() * ours[1].element_size()
    used = measure_memory(lambda: linear_sgd_(*ours, 0.1))
    eager = measure_memory(published_step(*rival))
    assert used < weight_bytes / 2
    assert used < eager
    assert eager > weight_bytes


def test_speed_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from spela_kernels.proof.meters import measure_us, replayed

    torch.use_deterministic_algorithms(False)
    ours, rival = _tensors(), _tensors()
    lr = torch.tensor(0.1, device="cuda")
    times = {
        "ours": measure_us(lambda: linear_sgd_(*ours, lr)),
        "ours, CUDA graph": measure_us(replayed(lambda: linear_sgd_(*ours, lr))),
        "eager": measure_us(published_step(*rival)),
    }
    assert all(us > 0 for us in times.values())
    with capsys.disabled():
        figures = ", ".join(f"{name} {us:.1f} us" for name, us in times.items())
        print(f"\n784-1024 at batch 50 on {torch.cuda.get_device_name()}: {figures}")
