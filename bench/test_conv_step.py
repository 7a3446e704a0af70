"""Group `layer_step`: one training step of a convolution layer; parity is checked before a speed is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.conv_cases import CONV_CASES, CONV_VARIANTS, make_conv_step


@pytest.mark.parametrize("variant", CONV_VARIANTS)
def test_conv_step(benchmark: Any, variant: str) -> None:
    case = CONV_CASES["64x1x28x28"]
    if variant == "spela":
        steps = [make_conv_step(name, case) for name in CONV_VARIANTS]
        for _ in range(2):
            losses = [step() for step in steps]
            torch.testing.assert_close(losses[1:], losses[:1] * 2, rtol=1e-4, atol=1e-5)
    benchmark.group = f"layer_step conv {case.name}"
    benchmark.extra_info |= {"variant": variant, "threads": torch.get_num_threads()}
    benchmark.pedantic(make_conv_step(variant, case), rounds=5, warmup_rounds=1)
