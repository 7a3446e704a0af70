"""Groups `epoch` and `memory`: an epoch with its data path, and the peak of one training step."""

from __future__ import annotations

from typing import Any

import pytest

from spela.benchmarks.epoch import EPOCH_VARIANTS, epoch_data
from spela.benchmarks.memory import MEMORY_VARIANTS, peak_bytes
from spela.benchmarks.network import NetworkCase


@pytest.mark.parametrize("variant", EPOCH_VARIANTS)
def test_epoch(benchmark: Any, variant: str) -> None:
    name, x, y = epoch_data(12_000)
    benchmark.group = f"epoch 784-1024-10/b50, 12,000 of {name}"
    benchmark.pedantic(EPOCH_VARIANTS[variant](x, y), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("variant", MEMORY_VARIANTS)
def test_memory(benchmark: Any, variant: str) -> None:
    step = MEMORY_VARIANTS[variant](NetworkCase((1024,) * 17, 512))
    benchmark.group = "memory 16 x 1024/b512"
    benchmark.extra_info["peak_bytes"] = peak_bytes(step)
    benchmark.pedantic(step, rounds=2)
