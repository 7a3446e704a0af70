"""A checkpointed block learns as any other, and stores less."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from spela import SpelaBlock
from spela.optim import LocalAdam, LocalSGD
from tests.spela.layers.small_blocks import BODIES, CLASSES


def test_checkpointing_gives_the_same_numbers_and_moves_statistics_once() -> None:
    states = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        x, target = torch.randn(12, 3, 8, 8), torch.arange(12) % CLASSES
        more = (nn.Dropout(0.3), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6, momentum=None))
        block = SpelaBlock(
            nn.Sequential(*BODIES["maps"][0](), *more), CLASSES, x, checkpoint=checkpoint
        )
        optimizer = LocalAdam(block.parameters(), lr=0.01)
        for _ in range(3):
            block.local_step(x, target, optimizer)
        states.append(block.state_dict())
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=0, msg=name)
    assert states[1]["body.1.num_batches_tracked"] == 3


def test_checkpointing_stores_less() -> None:
    held = []
    for checkpoint in (False, True):
        layers = [m for _ in range(6) for m in (nn.Linear(64, 64), nn.Tanh(), nn.Tanh())]
        x = torch.randn(32, 64)
        block = SpelaBlock(
            nn.Sequential(nn.Sequential(*layers[:9]), nn.Sequential(*layers[9:])),
            5,
            x,
            checkpoint=checkpoint,
        )
        stored: dict[int, int] = {}

        def note(t: Tensor, stored: dict[int, int] = stored) -> Tensor:
            stored[t.untyped_storage().data_ptr()] = t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            loss, _ = block.local_loss(x, torch.arange(32) % CLASSES)
        own = sum(p.numel() for p in block.parameters())
        held.append(sum(stored.values()) - own)
        loss.backward()
    assert held[1] < held[0] / 2


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.Hardswish])
def test_checkpointing_bears_activations_in_place(activation: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    x, target = torch.randn(6, 3, 8, 8).double(), torch.arange(6) % CLASSES
    last = nn.Sequential(activation(inplace=True), nn.Conv2d(8, 4, 3))
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), activation(inplace=True),
                         nn.Conv2d(8, 8, 3), last).double()  # fmt: skip
    block = SpelaBlock(body, CLASSES, x)
    other = copy.deepcopy(block)
    other.checkpoint = True
    for each in (block, other):
        each.local_step(x, target, LocalSGD(each.parameters(), lr=0.1))
    for mine, theirs in zip(other.parameters(), block.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_checkpointed_spectral_norm_has_the_plain_gradient() -> None:
    x, target = torch.randn(6, 5), torch.arange(6) % 3
    body = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 4))
    blocks = [SpelaBlock(copy.deepcopy(body), 3, x, checkpoint=on) for on in (False, True)]
    blocks[1].load_state_dict(blocks[0].state_dict())
    for block in blocks:
        loss, _ = block.local_loss(x, target)
        loss.backward()
    states = [block.state_dict() for block in blocks]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for now, then in zip(blocks[1].parameters(), blocks[0].parameters(), strict=True):
        assert torch.equal(now.grad, then.grad)
