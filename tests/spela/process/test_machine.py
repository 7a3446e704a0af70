"""What a figure was measured on."""

from __future__ import annotations

import os

import pytest
import torch

from spela.benchmarks.memory import peak_bytes
from spela.process.machine import are_passes_compiled, describe_machine
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


@pytest.mark.parametrize("before", [None, "3"])
def test_watching_memory_leaves_the_environment_as_it_was(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is None:
        monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    else:
        monkeypatch.setenv("KINETO_LOG_LEVEL", before)
    assert peak_bytes(lambda: torch.empty(256)) == 1024
    assert os.environ.get("KINETO_LOG_LEVEL") == before
