"""The CPU's products by either library, the choice between them, and the linear layer's parity on them."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spela_kernels.activations import ACTIVATIONS
from spela_kernels.cpu import gemm, gemm_choice
from spela_kernels.linear import cpu
from spela_kernels.linear.parity import CASES, LARGE
from spela_kernels.proof.parity import mismatches

ALL_CASES = {**CASES, **LARGE}
needs_onednn = pytest.mark.skipif(not gemm.onednn_works(), reason="torch has no oneDNN here")


@pytest.fixture(params=[pytest.param("onednn", marks=needs_onednn), "blas", "compiled"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(gemm_choice, "pinned_library", lambda: request.param)
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no choice remembered from before or for later."""
    monkeypatch.setenv("SPELA_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("SPELA_CPU_GEMM", raising=False)
    for looked_up in (gemm_choice._kept, gemm_choice.pinned_library):
        looked_up.cache_clear()
    yield tmp_path
    for looked_up in (gemm_choice._kept, gemm_choice.pinned_library):
        looked_up.cache_clear()


@pytest.mark.parametrize("case", ALL_CASES.values(), ids=ALL_CASES.keys())
def test_every_tensor_is_as_close_to_float64_as_the_reference(library: str, case) -> None:
    assert mismatches(cpu, case) == []


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_library_hides_a_nan(library: str, activation: str) -> None:
    """A loss that stays finite would train on."""
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(9, 12, generator=g),
        torch.randn(18, 12, generator=g),
        torch.ones(18),
    )
    x[2, 3], weight[5, 0] = math.nan, math.inf
    slope = torch.tensor([0.25]) if activation == "prelu" else 0.25
    y, _ = gemm.linear(x, weight, bias, activation, slope)
    exact = ACTIVATIONS[activation].forward(torch.nn.functional.linear(x, weight, bias), slope)
    assert exact[2].isnan().all()
    torch.testing.assert_close(y, exact, equal_nan=True)


def test_bf16_products_keep_float32_weights(library: str) -> None:
    g = torch.Generator().manual_seed(0)
    dz, x = (torch.randn(9, n, generator=g).bfloat16() for n in (5, 7))
    total = torch.randn(5, 7, generator=g)
    exact = 0.5 * total.double() - 0.25 * dz.double().T @ x.double()
    gemm.add_product_(total, dz, x, beta=0.5, alpha=-0.25)
    assert total.dtype == torch.float32
    assert (total - exact).abs().max() < 2**-8 * exact.abs().max()


def _slow(name: str):
    """A product that takes longer by the library `name`."""

    def run(library: str, x: Tensor, weight: Tensor, dz: Tensor) -> None:
        for _ in range(30 if library == name else 1):
            torch.mm(dz.T, x)

    return run


BOTH = ("blas", "onednn")


@pytest.mark.parametrize("slow", BOTH)
def test_the_faster_library_is_chosen_and_kept(folder: Path, slow: str) -> None:
    other = next(name for name in BOTH if name != slow)
    before = torch.random.get_rng_state()
    assert gemm_choice.choose_library("linear", 50, 200, 100, _slow(slow), BOTH) == other
    assert torch.equal(torch.random.get_rng_state(), before)
    (file,) = (path for path in folder.rglob("*") if path.is_file())
    assert file.name == f"linear-64x256x128-{torch.get_num_threads()}-threads-blas-onednn"
    # A later process reads it, even if it would now measure otherwise; shapes of one class share it.
    gemm_choice._kept.cache_clear()
    assert gemm_choice.choose_library("linear", 33, 129, 65, _slow(other), BOTH) == other


def test_who_comes_second_takes_the_first_ones_choice(folder: Path) -> None:
    path = folder / "a" / "choice"
    names = BOTH
    assert gemm_choice._keep(path, "blas", names) == "blas"
    assert gemm_choice._keep(path, "onednn", names) == "blas"
    path.write_text("damaged")
    assert gemm_choice._keep(path, "onednn", names) == "onednn"
    assert os.listdir(path.parent) == ["choice"]


def test_a_folder_that_cannot_be_written_is_named_and_survived(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("SPELA_CACHE_DIR", str(folder / "file" / "below"))
    assert gemm_choice.choose_library("update", 9, 9, 9, _slow("blas"), BOTH) == "onednn"
    assert "SPELA_CACHE_DIR" in caplog.text


def test_a_pinned_library_is_taken_and_a_wrong_name_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPELA_CPU_GEMM", "onednn")
    assert gemm_choice.choose_library("linear", 9, 9, 9, _slow("onednn"), BOTH) == "onednn"
    # Who cannot make this product is not asked to.
    assert gemm_choice.choose_library("linear", 9, 9, 9, _slow("blas"), ("blas",)) == "blas"
    assert list(folder.iterdir()) == []
    gemm_choice.pinned_library.cache_clear()
    monkeypatch.setenv("SPELA_CPU_GEMM", "cublas")
    with pytest.raises(ValueError, match="use one of auto, blas, onednn, compiled"):
        gemm_choice.choose_library("linear", 9, 9, 9, _slow("blas"), BOTH)


def test_without_the_internal_op_blas_does_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPELA_CPU_GEMM", raising=False)
    monkeypatch.setattr(gemm, "onednn_works", lambda: False)
    monkeypatch.setattr(gemm, "_onednn", None)
    gemm.libraries_here.cache_clear()
    try:
        assert "onednn" not in gemm.libraries_here()
        assert mismatches(cpu, CASES["several-blocks"]) == []
    finally:
        gemm.libraries_here.cache_clear()


def test_wrong_results_of_the_internal_op_are_noticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gemm, "_onednn", lambda x, w, b, name, slope: x @ w.T + 1)
    gemm.onednn_works.cache_clear()
    try:
        assert not gemm.onednn_works()
    finally:
        gemm.onednn_works.cache_clear()
    assert not torch.backends.mkldnn.is_available() or "results differ" in caplog.text


def test_a_bias_of_any_strides(library: str) -> None:
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(9, 16, generator=g), torch.randn(10, 16, generator=g)
    strided = torch.stack([torch.zeros(10), torch.full((10,), 7.0)], dim=1)[:, 0]
    for bias in (strided, torch.tensor(0.5).expand(10)):
        y, _ = gemm.linear(x, weight, bias, "identity", 0.0)
        torch.testing.assert_close(y, x @ weight.T + bias)
