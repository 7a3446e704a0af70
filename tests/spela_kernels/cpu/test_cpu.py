"""The CPU back-end against the reference: the same numbers to rounding, through the ops."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import spela_kernels as sk
from spela_kernels.linear import Parameters
from spela_kernels.projection import cpu
from spela_kernels.projection.parity import CASES, Case
from spela_kernels.proof.parity import mismatches
from spela_kernels.rules import AdamRule, Step, fused_update_, update_

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_fused_adam_is_adam(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    rule, lr = AdamRule(weight_decay=0.01), torch.tensor(0.1, dtype=dtype)
    ours, plain = ([torch.zeros(7, 33, dtype=dtype) for _ in range(3)] for _ in range(2))
    for number in range(1, 6):
        gradient = torch.randn(7, 33, generator=g, dtype=dtype)
        count = torch.tensor(float(number))
        for (parameter, *moments), update in ((ours, fused_update_), (plain, update_)):
            update(parameter, gradient.clone(), Step(rule, lr, *moments, count))
        assert count == number
    for now, then in zip(ours, plain, strict=True):
        assert (now - then).abs().max() <= TOLERANCE[dtype] * then.abs().max()
    assert plain[0].abs().min() > 0


def test_other_strides_are_stepped_as_they_lie() -> None:
    gradient, one, lr = torch.randn(5, 3), torch.tensor(1.0), torch.tensor(0.1)
    expected = [torch.zeros(5, 3) for _ in range(3)]
    update_(expected[0], gradient, Step(AdamRule(), lr, *expected[1:], one))
    turned = [torch.zeros(3, 5).T, torch.zeros(5, 3), torch.zeros(5, 3)]
    fused_update_(turned[0], gradient, Step(AdamRule(), lr, *turned[1:], one))
    for now, then in zip(turned, expected, strict=True):
        torch.testing.assert_close(now, then)


def test_a_rate_of_float64_on_a_gpu_is_not_handed_to_a_kernel_that_reads_float32() -> None:
    with FakeTensorMode():
        ours = [torch.empty(3, dtype=torch.float64, device="cuda") for _ in range(4)]
        lr, count = (
            torch.full((), 0.1, dtype=torch.float64, device="cuda"),
            torch.ones((), device="cuda"),
        )
        # torch's fused kernel has no fake: it would look for a GPU.
        fused_update_(ours[0], ours[1], Step(AdamRule(), lr, *ours[2:], count))
        assert ours[0].dtype == torch.float64


def test_both_ops_step_as_the_reference_does() -> None:
    x, target = torch.randn(9, 6), torch.arange(9) % 3
    weight, vectors = torch.randn(8, 6), torch.eye(8)[:3]
    z, p = torch.randn(9, 4, 6), torch.randn(4, 6, 8)
    rows, groups = torch.eye(8).reshape(4, 2, 8), torch.tensor([[0, 1, 1]] * 4)
    results = {}
    for backend in ("cpu", "reference"):
        w, q = weight.clone(), p.clone()
        first, second = (Parameters(torch.zeros_like(w), None, None) for _ in range(2))
        with sk.use_backend(backend):
            for step in (1, 2):
                loss, y = sk.linear_adam_(
                    x, w, None, vectors, target, 0.1, exp_avgs=first, exp_avg_sqs=second, step=step
                )
            moments = torch.zeros_like(q), torch.zeros_like(q)
            other, dz = sk.projection_adam_(
                z, q, rows, groups, target, 0.1, exp_avg=moments[0], exp_avg_sq=moments[1], step=1
            )
        results[backend] = (loss, y, w, other, dz, q)
    torch.testing.assert_close(results["cpu"], results["reference"])
    assert not torch.equal(results["cpu"][2], weight)


@pytest.mark.parametrize("part_bytes", [1, 2**12, 2**30])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_projection_in_parts(
    case: Case, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_PART_BYTES", part_bytes)  # one kernel, a few, all
    assert mismatches(cpu, case) == []
