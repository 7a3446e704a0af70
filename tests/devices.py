"""Devices that a test runs on: its body on the CPU is a normal test, on a GPU one marked gpu."""

from __future__ import annotations

import pytest
import torch

ON_A_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_A_GPU)]
# Where something begins, and where it goes on.
MOVES = [
    ("cpu", "cpu"),
    pytest.param("cpu", "cuda", marks=ON_A_GPU),
    pytest.param("cuda", "cpu", marks=ON_A_GPU),
]
