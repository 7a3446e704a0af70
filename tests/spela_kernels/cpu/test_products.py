"""The compiled products: every width of vectors, both update rules, and where they step aside."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from spela_kernels.cpu import gemm, products
from spela_kernels.cpu.products import (
    adam_product_,
    fits,
    linear,
    linear_fits,
    momentum_product_,
    sgd_product_,
)
from spela_kernels.linear import cpu
from spela_kernels.linear.parity import CASES, LARGE
from spela_kernels.proof.parity import mismatches
from spela_kernels.rules import AdamRule, SgdRule, Step, update_

ALL_CASES = {**CASES, **LARGE}
BUILT = products._products is not None
WIDTHS = range(products._products.WIDEST + 1) if BUILT else ()
# (B, O, I): whole tiles, parts of one in every direction, fewer outputs than a tile has, samples left over,
# no inputs.
SHAPES = [(50, 96, 128), (7, 35, 21), (1, 1, 1), (3, 6, 65), (300, 10, 784), (2, 13, 47)]
SHAPES += [(67, 100, 300), (68, 5, 129), (3, 8, 0)]
needs_build = pytest.mark.skipif(not BUILT, reason="the compiled pass was not built")


def test_it_is_built_where_a_compiler_is_at_hand() -> None:
    assert BUILT or shutil.which("cc") is None


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Every width of vectors that this processor has, as if it were the widest."""

    built = products._products

    class Passes:
        WIDEST, FEWEST = request.param, built.FEWEST
        scratch, linear, sgd = built.scratch, built.linear, built.sgd
        momentum, adam = built.momentum, built.adam

    monkeypatch.setattr(products, "_products", Passes)
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


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


@needs_build
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_linear_against_float64(
    width: int, threads: int, shape: tuple[int, int, int], biased: bool
) -> None:
    weight, _, x = _tensors(*shape)
    if shape[1] < products._products.FEWEST:
        assert not linear_fits(x, weight, None)
        return
    bias = torch.linspace(-2, 2, shape[1]) if biased else None
    z = x.double() @ weight.double().T + (0 if bias is None else bias)
    y = linear(x, weight, bias, 0.25)
    bound = 2**-23 * (shape[2] * _largest(weight) * _largest(x) + 2)
    assert (y - torch.where(z > 0, z, 0.25 * z)).abs().max() <= bound
    assert (linear(x, weight, bias, 1.0) - z).abs().max() <= bound


@needs_build
def test_nan_and_infinity_reach_their_sample_only(width: int) -> None:
    for wrong in (math.nan, math.inf):
        weight, _, x = _tensors(50, 8, 40)
        for sample in (3, 49):
            broken = x.clone()
            broken[sample, 7] = wrong
            y = linear(broken, weight, None, 0.5)
            assert not y[sample].isfinite().any()
            assert y[torch.arange(50) != sample].isfinite().all()


@needs_build
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sgd_against_float64(width: int, threads: int, shape: tuple[int, int, int]) -> None:
    weight, dz, x = _tensors(*shape)
    product = dz.double().T @ x.double()
    exact = 0.75 * weight.double() - 0.25 * product
    sgd_product_(weight, dz, x, beta=0.75, alpha=-0.25)
    # One rounding a term of the sum, of the size of its largest partial sum.
    bound = 2**-23 * (shape[0] * _largest(dz) * _largest(x) + _largest(weight))
    assert _largest(weight - exact) <= bound


@needs_build
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_momentum_against_float64(
    width: int, threads: int, shape: tuple[int, int, int], nesterov: bool
) -> None:
    weight, dz, x = _tensors(*shape)
    buffer, lr = 0.1 * torch.randn_like(weight), torch.tensor(0.02)
    rule = SgdRule(0.8, 0.01, nesterov)
    exact = [t.double() for t in (weight, buffer)]
    update_(exact[0], dz.double().T @ x.double(), Step(rule, lr.double(), exact[1], None))
    momentum_product_(weight, dz, x, Step(rule, lr, buffer, None))
    bound = 2**-23 * (shape[0] * _largest(dz) * _largest(x) + _largest(weight))
    assert _largest(buffer - exact[1]) <= bound
    assert _largest(weight - exact[0]) <= bound


@needs_build
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adam_against_float64(width: int, threads: int, shape: tuple[int, int, int]) -> None:
    weight, dz, x = _tensors(*shape)
    first, second = 0.1 * torch.randn_like(weight), torch.rand_like(weight)
    rule, step, lr = AdamRule(0.8, 0.95, 1e-6, 0.01), torch.tensor(3.0), torch.tensor(0.02)
    exact = [t.double() for t in (weight, first, second)]
    gradient = dz.double().T @ x.double()
    update_(exact[0], gradient, Step(rule, lr.double(), exact[1], exact[2], step.double()))
    adam_product_(weight, dz, x, Step(rule, lr, first, second, step))
    for ours, theirs in zip((weight, first, second), exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-5, atol=2e-5)


@needs_build
def test_adam_moments_never_become_denormal(width: int) -> None:
    least, step, lr = torch.finfo(torch.float32).tiny, torch.tensor(9.0), torch.tensor(0.0)
    weight, dz, x = torch.ones(7, 21), torch.zeros(2, 7), torch.ones(2, 21)
    first, second = torch.full((7, 21), 1.05 * least), torch.full((7, 21), 1.0005 * least)
    first[1], second[2] = -2 * least, 2 * least
    first[3], second[4] = math.nan, math.nan
    adam_product_(weight, dz, x, Step(AdamRule(), lr, first, second, step))
    expected = torch.zeros(2, 7, 21)
    expected[0, 1], expected[1, 2] = 0.9 * first.new_tensor(-2 * least), 0.999 * 2 * least
    expected[0, 3], expected[1, 4] = math.nan, math.nan
    torch.testing.assert_close(
        torch.stack((first, second)), expected, rtol=1e-6, atol=0, equal_nan=True
    )


@needs_build
def test_sgd_leaves_no_denormal_momentum(width: int) -> None:
    least = torch.finfo(torch.float32).tiny
    weight, buffer = (
        torch.ones(3, 21),
        torch.tensor([1.05, -1.05, 2.0])[:, None].repeat(1, 21) * least,
    )
    other, dz, x = buffer.clone(), torch.zeros(2, 3), torch.ones(2, 21)
    expected = torch.tensor([0.0, 0.0, 1.8 * least])[:, None].expand(3, 21)
    sgd_product_(other, dz, x, beta=0.9, alpha=1.0)
    momentum_product_(weight, dz, x, Step(SgdRule(0.9), torch.tensor(0.0), buffer, None))
    for left in (other, buffer):
        torch.testing.assert_close(left, expected, rtol=1e-6, atol=0)


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
@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_process_waits_for_no_threads_of_its_parent() -> None:
    code = """
import os, torch
from spela_kernels.cpu import products
torch.set_num_threads(2)
torch.relu(torch.ones(1000, 1000))  # OpenMP's threads are there
x, weight = torch.ones(64, 1000), torch.ones(1000, 1000)
child = os.fork()
if child == 0:
    y = products.linear(x, weight, None, 1.0)
    os._exit(0 if y.tolist() == [[1000.0] * 1000] * 64 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0", done.stderr


@needs_build
def test_threads_do_not_change_a_bit() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            weight, dz, x = _tensors(50, 96, 128)
            torch.set_num_threads(count)
            y = linear(x, weight, None, 0.5)
            sgd_product_(weight, dz, x, beta=1.0, alpha=-0.5)
            results.append(torch.cat([weight.flatten(), y.flatten()]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_build
def test_wrong_arguments_are_refused() -> None:
    for name, expected in {
        "scratch": 4,
        "linear": 11,
        "sgd": 11,
        "momentum": 14,
        "adam": 17,
    }.items():
        with pytest.raises(TypeError, match=f"expected {expected} arguments, got 1"):
            getattr(products._products, name)(0)
    with pytest.raises(ValueError, match="outputs"):
        products._products.linear(0, 1, 1, 1, 1, 0, 0, 0, 0, 1.0, 0)
    with pytest.raises(ValueError, match="no vectors of width 9"):
        products._products.sgd(9, 1, 1, 1, 1, 0, 0, 0, 0, 1.0, 1.0)


@needs_build
def test_it_steps_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, dz, x = _tensors(5, 8, 40)
    assert fits(dz, x, weight)
    assert not fits(dz, x, weight.double())
    assert not fits(dz.bfloat16(), x, weight)
    assert not fits(dz, x, weight.T.contiguous().T)
    monkeypatch.setattr(products, "_products", None)
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
    monkeypatch.setattr(products, "_products", None)
    assert mismatches(cpu, case) == []
