"""What a figure was measured on."""

from __future__ import annotations

import pytest

from spela.benchmarks.machine import are_passes_compiled, describe_machine
from spela_kernels.cpu import products
from spela_kernels.linear import compiled, steps
from spela_kernels.pooling import compiled as maps


@pytest.mark.parametrize(
    ("module", "name"),
    [(products, "_products"), (compiled, "_rows"), (steps, "_steps"), (maps, "_windows")],
)
def test_one_pass_that_is_missing_is_said(
    module: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if are_passes_compiled():
        assert describe_machine()["passes"] == "compiled"
    monkeypatch.setattr(module, name, None)
    assert not are_passes_compiled()
    assert describe_machine()["passes"] == "not all"
