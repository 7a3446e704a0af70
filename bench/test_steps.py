"""Groups `layer_step` and `network_step`: training steps, beside rivals and floors; parity comes first."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spela.benchmarks.convolution import (
    CONV_CASES,
    CONV_VARIANTS,
    check_conv_parity,
    make_conv_step,
)
from spela.benchmarks.network import NETWORK_CASES, VARIANTS, NetworkCase, check_parity

LAYER_CASES = tuple(NetworkCase((784, 1024), batch) for batch in (50, 512))
# The floor and the rivals of one layer; compiling a network belongs to the whole network.
LAYER_VARIANTS = ("spela", "floor", "autograd_spela", "spela_adam", "autograd_spela_adam")


def _time(benchmark: Any, group: str, variant: str, case: NetworkCase) -> None:
    if variant == "spela":
        check_parity(case)
    benchmark.group = f"{group} {case.name}"
    benchmark.extra_info |= {"variant": variant, "threads": torch.get_num_threads()}
    benchmark(VARIANTS[variant](case))


@pytest.mark.parametrize("case", NETWORK_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", VARIANTS)
def test_network_step(benchmark: Any, variant: str, case: NetworkCase) -> None:
    _time(benchmark, "network_step", variant, case)


@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", LAYER_VARIANTS)
def test_layer_step(benchmark: Any, variant: str, case: NetworkCase) -> None:
    _time(benchmark, "layer_step", variant, case)


@pytest.mark.parametrize("variant", CONV_VARIANTS)
def test_conv_step(benchmark: Any, variant: str) -> None:
    case = CONV_CASES["64x1x28x28"]
    if variant == "spela":
        check_conv_parity(case)
    benchmark.group = f"layer_step conv {case.name}"
    benchmark.extra_info |= {"variant": variant, "threads": torch.get_num_threads()}
    benchmark.pedantic(make_conv_step(variant, case), rounds=5, warmup_rounds=1)
