"""Group `network_step`: one training step of a whole network; parity is checked before a speed is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.cases import CASES, VARIANTS, Case, make_step


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", VARIANTS)
def test_network_step(benchmark: Any, variant: str, case: Case) -> None:
    if variant == "spela":
        ours, published = make_step("spela", case), make_step("autograd_spela", case)
        for _ in range(3):
            torch.testing.assert_close(ours(), published(), rtol=1e-4, atol=1e-5)
    benchmark.group = f"network_step {case.name}"
    benchmark.extra_info |= {
        "variant": variant,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    benchmark(make_step(variant, case))
