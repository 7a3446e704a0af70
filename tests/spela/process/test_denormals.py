"""Denormal numbers are zero in a block, and what the program had set is set again behind it."""

from __future__ import annotations

import pytest
import torch

from spela.process import flush_denormals


def _flushed() -> bool:
    return torch.tensor(1e-40, dtype=torch.float32).item() == 0.0


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("own", [False, True])
def test_a_programs_own_setting_comes_back(own: bool, default: torch.dtype) -> None:
    before, dtype = _flushed(), torch.get_default_dtype()
    if not torch.set_flush_denormal(own):
        pytest.skip("this processor does not flush denormal numbers")
    torch.set_default_dtype(default)
    try:
        with flush_denormals():
            assert _flushed()
        assert _flushed() == own
    finally:
        torch.set_default_dtype(dtype)
        torch.set_flush_denormal(before)
