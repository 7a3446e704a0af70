"""Groups `kernel` and `vectors`: a layer's products and Adam step by each library, and symmetric vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from spela import symmetric_vectors
from spela.process import threads_used
from spela_kernels.cpu import gemm_choice
from spela_kernels.cpu.gemm import add_product_, linear, onednn_works, product, update_product_
from spela_kernels.cpu.gemm_choice import LIBRARIES
from spela_kernels.cpu.products import fits
from spela_kernels.rules import AdamRule, Step


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
        add_product_(weight, dz, x, beta=1.0, alpha=-1e-3)
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


@pytest.fixture
def kept_denormals() -> Iterator[None]:
    """As in a program that does not flush denormal numbers; one thread, as each has its own setting."""
    with threads_used(1):
        torch.set_flush_denormal(False)
        yield
        torch.set_flush_denormal(True)


@pytest.mark.parametrize("start", [0.0, 1e-40], ids=["zero", "denormal"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_adam_with_moments_of_dead_units(
    benchmark: Any,
    monkeypatch: pytest.MonkeyPatch,
    kept_denormals: None,
    library: str,
    start: float,
) -> None:
    if not {"blas": True, "onednn": onednn_works(), "compiled": fits()}[library]:
        pytest.skip("cannot make this product here")
    g = torch.Generator().manual_seed(0)
    x, dz = torch.rand(50, 1024, generator=g), torch.rand(50, 1024, generator=g)
    dz[:, ::2] = 0  # every other unit is dead
    weight, second = torch.ones(1024, 1024), torch.ones(1024, 1024)
    first = torch.where(dz[0].bool(), 1.0, start)[:, None].repeat(1, 1024)
    monkeypatch.setattr(gemm_choice, "pinned_library", lambda: library)
    step = Step(AdamRule(), torch.tensor(1e-3), first, second, torch.tensor(100.0))
    benchmark.group = "kernel adam 1024x1024/b50, half of the units dead"
    benchmark.extra_info |= {"variant": f"{library}, first moments {start:g}", "threads": 1}
    benchmark(update_product_, weight, dz, x, step)
    assert torch.equal(weight[::2], torch.ones(512, 1024))


@pytest.mark.parametrize("count", [10, 100])
def test_symmetric_vectors(benchmark: Any, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    benchmark.group = f"vectors {count} of 1024"
    rows = benchmark(lambda: symmetric_vectors(count, 1024, generator=generator))
    assert rows.shape == (count, 1024)
