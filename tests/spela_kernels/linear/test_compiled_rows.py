"""The compiled pass over a layer's rows: every objective and activation, and where it must step aside."""

from __future__ import annotations

import math
import shutil

import pytest
import torch

from spela_kernels.activations import ACTIVATIONS
from spela_kernels.contracts import Settings
from spela_kernels.linear import compiled, cpu, reference
from spela_kernels.linear.compiled import is_built, step_rows
from spela_kernels.linear.parity import CASES, LARGE
from spela_kernels.linear.types import Call, Parameters
from spela_kernels.objectives import OBJECTIVES
from spela_kernels.proof.parity import mismatches

needs_build = pytest.mark.skipif(not is_built(), reason="the compiled pass was not built")


def test_it_is_built_where_a_compiler_is_at_hand() -> None:
    assert is_built() or shutil.which("cc") is None


@pytest.mark.parametrize("case", {**CASES, **LARGE}.values(), ids={**CASES, **LARGE}.keys())
def test_without_it_torch_does_the_same(case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_rows", None)
    assert mismatches(cpu, case) == []


def _rows(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.randn(11, 203, generator=g, dtype=dtype)  # three lanes of 64 and a rest
    y[4] = 0  # no direction
    vectors = torch.nn.functional.normalize(torch.randn(7, 203, generator=g, dtype=dtype), dim=1)
    return y, vectors, torch.randint(7, (11,), generator=g)


@needs_build
@pytest.mark.parametrize("activation", ["leaky_relu", "relu", "identity", "gelu"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_gradient_against_float64(objective: str, activation: str) -> None:
    y, vectors, target = _rows()
    settings = Settings(activation, 0.25, objective, 5.0)
    eye = Parameters(torch.eye(203, dtype=torch.float64), None, None)
    # The reference's layer with W = 1 and no activation hands the rows on as they are.
    plain = Settings("identity", 0.0, objective, 5.0)
    exact_rows = Call(y.double(), eye, vectors.double(), target, plain)
    saved = reference.forward(exact_rows)
    dweight = reference.backward(exact_rows, saved).weight
    # `y` has a row of zeros: of the drivers gelsd alone is right where the rank is short.
    dy = torch.linalg.lstsq(y.double().T, dweight.T, driver="gelsd").solution
    below = {"leaky_relu": 0.25, "relu": 0.0}.get(activation, 1.0)
    expected = torch.where(y > 0, 1.0, below) * dy
    expected[4] = 0  # lstsq says nothing about a row of zeros

    step = step_rows(y, vectors, target, settings)
    assert step is not None
    assert step.activated == (activation != "gelu")
    torch.testing.assert_close(step.loss.double(), saved.loss, rtol=1e-5, atol=1e-6)
    scale = float(expected.abs().max())
    assert (step.gradient - expected).abs().max() <= 2e-5 * scale
    assert (step.total - expected.sum(0)).abs().max() <= 1e-4 * scale
    assert torch.equal(step.gradient[4], torch.zeros(203))


@needs_build
@pytest.mark.parametrize("scale", [5.0, 15.0, 30.0])
def test_the_small_gradient_of_a_sure_sample_is_right(scale: float) -> None:
    _, vectors, target = _rows()
    # Nearly its class vector: what is left of the label's share of 1 is down to 1e-13.
    y = 3 * vectors[target] + 0.01 * torch.randn(
        11, 203, generator=torch.Generator().manual_seed(1)
    )
    exact = y.double().requires_grad_()
    cosines = torch.nn.functional.normalize(exact, dim=1) @ vectors.double().T
    torch.nn.functional.cross_entropy(scale * cosines, target).backward()
    step = step_rows(y, vectors, target, Settings("identity", 0.0, "softmax", scale))
    assert step is not None
    wrong = (step.gradient.double() - exact.grad).norm(dim=1) / exact.grad.norm(dim=1)
    assert wrong.max() < 1e-4


@needs_build
@pytest.mark.parametrize("objective", ["log", "euclidean", "softmax"])
def test_nan_and_infinity_stay(objective: str) -> None:
    for wrong in (math.nan, math.inf):
        y, vectors, target = _rows()
        y[2, 5] = wrong
        step = step_rows(y, vectors, target, Settings("leaky_relu", 0.1, objective))
        assert step is not None
        assert step.loss.isnan()
        assert step.gradient[2].isnan().all()
        assert step.gradient[3].isfinite().all()


@needs_build
def test_it_steps_aside() -> None:
    y, vectors, target = _rows()
    settings = Settings("leaky_relu", 0.1, "log")
    assert step_rows(y, vectors, target, settings) is not None
    assert step_rows(y.double(), vectors.double(), target, settings) is None
    assert step_rows(y.T.contiguous().T, vectors, target, settings) is None
    assert step_rows(y, vectors.T.contiguous().T, target, settings) is None


@needs_build
def test_labels_may_lie_apart() -> None:
    y, vectors, target = _rows()
    apart = torch.stack([target, target + 100], dim=1)[:, 0]
    settings = Settings("leaky_relu", 0.1, "log")
    ours, theirs = (step_rows(y, vectors, labels, settings) for labels in (apart, target))
    assert torch.equal(ours.gradient, theirs.gradient)


@needs_build
def test_wrong_counts_of_arguments_are_refused() -> None:
    for name, expected in {"label_rows": 13, "class_factors": 11, "class_rows": 8}.items():
        with pytest.raises(TypeError, match=f"expected {expected} arguments, got 1"):
            getattr(compiled._rows, name)(0)


@needs_build
@pytest.mark.parametrize("objective", ["log", "mse"])
def test_threads_do_not_change_a_bit(objective: str) -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.randn(420, 333, generator=g)
    vectors = torch.nn.functional.normalize(torch.randn(7, 333, generator=g), dim=1)
    target, before, steps = torch.randint(7, (420,), generator=g), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            steps.append(step_rows(y, vectors, target, Settings("leaky_relu", 0.1, objective)))
    finally:
        torch.set_num_threads(before)
    for step in steps[1:]:
        assert all(torch.equal(a, b) for a, b in zip(step[:3], steps[0][:3], strict=True))


def test_every_name_it_knows_is_in_the_tables() -> None:
    assert set(compiled.OBJECTIVES) <= set(OBJECTIVES)
    assert set(compiled._SLOPES) <= set(ACTIVATIONS)
