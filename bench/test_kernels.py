"""Groups `kernel` and `vectors`: the products of a layer by each library, and symmetric vectors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spela import symmetric_vectors
from spela_kernels import gemm_choice
from spela_kernels.compiled_products import fits
from spela_kernels.gemm import add_product_, linear, onednn_works, product
from spela_kernels.gemm_choice import LIBRARIES


@pytest.mark.parametrize("batch", [50, 512])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kind", ["linear", "product", "update"])
def test_product(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, kind: str, library: str, batch: int
) -> None:
    able = {"blas": True, "onednn": onednn_works(), "compiled": kind != "product" and fits()}
    if not able[library]:
        pytest.skip("cannot make this product here")
    g = torch.Generator().manual_seed(0)
    x, dz = torch.rand(batch, 1024, generator=g), torch.rand(batch, 1024, generator=g)
    start, bias = torch.rand(1024, 1024, generator=g), torch.rand(1024, generator=g)
    weight = start.clone()

    def update() -> torch.Tensor:
        add_product_(weight, dz, x, beta=1.0, alpha=-1e-6)
        return weight

    run = {
        "linear": lambda: linear(x, weight, bias, "leaky_relu", 1e-3)[0],
        "product": lambda: product(dz, x),
        "update": update,
    }[kind]
    results = []
    for name in ("blas", library):
        monkeypatch.setattr(gemm_choice, "pinned_library", lambda name=name: name)
        weight.copy_(start)
        results.append(run().clone())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
    benchmark.group = f"kernel {kind} 1024x1024/b{batch}"
    benchmark.extra_info |= {"variant": library, "threads": torch.get_num_threads()}
    with torch.no_grad():
        benchmark(run)


@pytest.mark.parametrize("count", [10, 100])
def test_symmetric_vectors(benchmark: Any, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    benchmark.group = f"vectors {count} of 1024"
    rows = benchmark(lambda: symmetric_vectors(count, 1024, generator=generator))
    assert rows.shape == (count, 1024)
