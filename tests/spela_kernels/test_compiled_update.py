"""Product and update in one compiled pass: every width of vectors, both rules, and where it steps aside."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from torch import Tensor

from spela_kernels import compiled_update, gemm
from spela_kernels.compiled_update import adam_product_, fits, sgd_product_
from spela_kernels.linear import cpu
from spela_kernels.linear.parity import CASES, LARGE
from spela_kernels.parity import mismatches
from spela_kernels.rules import AdamRule, adam_update_

ALL_CASES = {**CASES, **LARGE}
BUILT = compiled_update._update is not None
WIDTHS = range(compiled_update._update.WIDEST + 1) if BUILT else ()
# Whole tiles, parts of one in either direction, one of everything, and more rows than a tile packs at once.
SHAPES = [(50, 96, 128), (7, 35, 21), (1, 1, 1), (3, 6, 65), (300, 10, 784), (2, 13, 47)]
needs_build = pytest.mark.skipif(not BUILT, reason="the compiled pass was not built")


def test_it_is_built_where_a_compiler_is_at_hand() -> None:
    assert BUILT or shutil.which("cc") is None


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Every width of vectors that this processor has, as if it were the widest."""

    class Pass:
        WIDEST = request.param
        sgd, adam = compiled_update._update.sgd, compiled_update._update.adam

    monkeypatch.setattr(compiled_update, "_update", Pass)
    return int(request.param)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> int:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _tensors(batch: int, outputs: int, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((outputs, inputs), (batch, outputs), (batch, inputs))
    weight, dz, x = (torch.randn(shape, generator=g) for shape in shapes)
    return weight, dz, x


@needs_build
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sgd_against_float64(width: int, threads: int, shape: tuple[int, int, int]) -> None:
    weight, dz, x = _tensors(*shape)
    product = dz.double().T @ x.double()
    exact = 0.75 * weight.double() - 0.25 * product
    sgd_product_(weight, dz, x, beta=0.75, alpha=-0.25)
    # One rounding a term of the sum, of the size of its largest partial sum.
    bound = 2**-23 * (shape[0] * dz.abs().max() * x.abs().max() + weight.abs().max())
    assert (weight - exact).abs().max() <= bound


@needs_build
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adam_against_float64(width: int, threads: int, shape: tuple[int, int, int]) -> None:
    weight, dz, x = _tensors(*shape)
    first, second = 0.1 * torch.randn_like(weight), torch.rand_like(weight)
    rule, step, lr = AdamRule(0.8, 0.95, 1e-6, 0.01), torch.tensor(3.0), torch.tensor(0.02)
    exact = [t.double() for t in (weight, first, second)]
    gradient = dz.double().T @ x.double()
    adam_update_(exact[0], gradient, exact[1], exact[2], step.double(), lr.double(), rule)
    adam_product_(weight, dz, x, first, second, step, lr, rule)
    for ours, theirs in zip((weight, first, second), exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-5, atol=2e-5)


@needs_build
def test_neighbours_stay_as_they_are(width: int) -> None:
    _, dz, x = _tensors(5, 7, 21)
    around = torch.full((9, 21), 3.0)
    sgd_product_(around[1:8], dz, x, beta=0.0, alpha=1.0)
    assert torch.equal(around[0], torch.full((21,), 3.0))
    assert torch.equal(around[8], torch.full((21,), 3.0))
    assert not (around[1:8] == 3.0).any()


@needs_build
def test_nan_and_infinity_stay_in_their_row_and_column(width: int) -> None:
    for wrong in (math.nan, math.inf):
        weight, dz, x = _tensors(5, 8, 40)
        dz[2, 3] = wrong
        sgd_product_(weight, dz, x, beta=1.0, alpha=-0.5)
        assert not weight[3].isfinite().any()
        assert weight[torch.arange(8) != 3].isfinite().all()


@needs_build
def test_threads_do_not_change_a_bit() -> None:
    before, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        weight, dz, x = _tensors(50, 96, 128)
        torch.set_num_threads(count)
        sgd_product_(weight, dz, x, beta=1.0, alpha=-0.5)
        results.append(weight)
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_build
def test_wrong_arguments_are_refused() -> None:
    for name, expected in {"sgd": 10, "adam": 16}.items():
        with pytest.raises(TypeError, match=f"expected {expected} arguments, got 1"):
            getattr(compiled_update._update, name)(0)
    with pytest.raises(ValueError, match="no vectors of width 9"):
        compiled_update._update.sgd(9, 1, 1, 1, 1, 0, 0, 0, 1.0, 1.0)


@needs_build
def test_it_steps_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, dz, x = _tensors(5, 8, 40)
    assert fits(dz, x, weight)
    assert not fits(dz, x, weight.double())
    assert not fits(dz.bfloat16(), x, weight)
    assert not fits(dz, x, weight.T.contiguous().T)
    monkeypatch.setattr(compiled_update, "_update", None)
    assert not fits(dz, x, weight)


@needs_build
@pytest.mark.parametrize("case", ALL_CASES.values(), ids=ALL_CASES.keys())
def test_the_layers_steps_are_as_close_to_float64_as_the_reference(
    case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm, "choose_library", lambda *args: args[-1][-1])
    assert mismatches(cpu, case) == []


@pytest.mark.parametrize("case", ALL_CASES.values(), ids=ALL_CASES.keys())
def test_without_it_the_libraries_do_the_same(case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_update, "_update", None)
    assert mismatches(cpu, case) == []
