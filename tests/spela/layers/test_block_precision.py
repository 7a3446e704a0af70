"""Blocks under torch's modes and in other dtypes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spela import SpelaBlock
from spela.optim import LocalAdam, LocalSGD
from tests.spela.layers.small_blocks import small_block


@pytest.mark.parametrize("hidden", [0, 5])
def test_mixed_precision_learns_and_keeps_float32(hidden: int) -> None:
    block, x, target = small_block("maps", dtype=torch.float32, hidden=hidden, channels=hidden)
    optimizer = LocalAdam(block.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, y = block.local_step(x, target, optimizer)
        losses.append(float(loss))
    assert y.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in block.parameters())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_step_learns_with_gradients_off_in_the_same_bits(mode: Any) -> None:
    states = []
    for outside in (torch.enable_grad, mode):
        block, x, target = small_block("maps", dtype=torch.float32)
        optimizer = LocalAdam(block.parameters(), lr=0.01)
        with outside():
            for _ in range(3):
                block.local_step(x.clone(), target, optimizer)
        states.append(block.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_losses_are_there_in_inference_mode() -> None:
    block, x, target = small_block("maps", dtype=torch.float32)
    expected = block.eval().local_loss(x, target)[0]
    with torch.inference_mode():
        assert torch.equal(block.local_loss(x.clone(), target)[0], expected.detach())


class _Widening(nn.Module):
    """Gives its output in another dtype than its weights have, as many networks do with their logits."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.a, self.dtype = nn.Linear(6, 8), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).to(self.dtype)


@pytest.mark.parametrize("settings", [{}, {"hidden": 4}, {"projection": None}, {"similarity": 0.5}])
@pytest.mark.parametrize(
    ("own", "out"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
    ],
)
def test_an_output_in_another_dtype_is_learnt_from(
    own: torch.dtype, out: torch.dtype, settings: dict[str, Any]
) -> None:
    x, target = torch.randn(6, 6).to(own), torch.arange(6) % 3
    block = SpelaBlock(_Widening(out).to(own), 3, x, **settings)
    before = {name: value.clone() for name, value in block.named_parameters()}
    loss, y = block.local_step(x, target, LocalSGD(block.parameters(), lr=1.0))
    assert y.dtype == out
    assert loss.isfinite()
    for name, value in block.named_parameters():
        assert value.dtype == own
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_a_block_in_16_bits_takes_torch_s_step(kind: str) -> None:
    block, x, target = small_block("maps", dtype=torch.bfloat16)
    twin, before = copy.deepcopy(block), block.projection.clone()
    ours = {"Adam": LocalAdam, "SGD": LocalSGD}[kind](block.parameters(), lr=1e-2)
    theirs = getattr(torch.optim, kind)(twin.parameters(), lr=1e-2, fused=kind == "Adam")
    block.local_step(x, target, ours)
    twin.local_step(x, target, theirs)
    assert not torch.equal(block.projection, before)
    for name, value in block.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
