"""A backward runs on its forward's back-end, in whatever thread autograd calls it: a GPU's are its own."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

import spela_kernels as sk
from spela_kernels.linear import cpu as linear_cpu
from spela_kernels.linear import reference as linear_reference
from spela_kernels.projection import cpu as projection_cpu
from spela_kernels.projection import reference as projection_reference


def _linear() -> torch.Tensor:
    weight = torch.randn(4, 3, requires_grad=True)
    return sk.linear_loss(torch.randn(5, 3), weight, None, torch.eye(4), torch.arange(5) % 4)[0]


def _projection() -> torch.Tensor:
    weight = torch.randn(1, 3, 4, requires_grad=True)
    groups = torch.arange(4)[None]
    z, target = torch.randn(5, 1, 3), torch.arange(5) % 4
    return sk.projection_loss(z, weight, torch.eye(4)[None], groups, target)


@pytest.mark.parametrize("asked", ["reference", "cpu"])
@pytest.mark.parametrize("op", ["linear", "projection"])
def test_it_is_the_one_that_was_asked_for(
    op: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    modules = {
        "linear": {"reference": linear_reference, "cpu": linear_cpu},
        "projection": {"reference": projection_reference, "cpu": projection_cpu},
    }[op]
    for name, module in modules.items():
        monkeypatch.setattr(module, "backward", _recorded(name, module.backward, ran))
    with sk.use_backend(asked):
        loss = (_linear if op == "linear" else _projection)()
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert ran == [asked]


def _recorded(name: str, run: Any, ran: list[str]) -> Any:
    def recorded(*args: Any) -> Any:
        ran.append(name)
        return run(*args)

    return recorded
