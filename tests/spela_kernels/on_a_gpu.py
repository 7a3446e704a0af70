"""What every module of tests on a real GPU marks its tests with."""

from __future__ import annotations

import pytest
import torch

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
    pytest.mark.usefixtures("exact_reference_and_nan_filled_outputs"),
]
