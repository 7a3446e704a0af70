"""What no block can be made of, and steps that are refused before anything moves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spela import SpelaBlock, SpelaSequential, convert
from spela.optim import LocalAdam, LocalSGD
from tests.spela.layers.small_blocks import CLASSES, small_block


class _Returns(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


@pytest.mark.parametrize(
    ("body", "settings", "message"),
    [
        (_Returns(lambda x: (x, x)), {}, "must return one float tensor, got tuple"),
        (_Returns(lambda x: x.argmax(1)), {}, "must return one float tensor, got torch.int64"),
        (_Returns(lambda x: x[:, 0, 0, 0]), {}, r"must return maps"),
        (_Returns(lambda x: x.flatten(1)[:1]), {}, "must keep the batch axis"),
        (nn.ReLU(inplace=True), {}, "changes its input in place"),
        (nn.Identity(), {"readout": 0}, "`readout` must be at least 1"),
        (nn.Identity(), {"projection": 1}, "`projection` must be at least 2"),
        (
            _Returns(lambda x: x.flatten(1)[:, :1]),
            {"projection": None, "hidden": 0},
            "in one dimension no direction can turn",
        ),
        (nn.Identity(), {"dropout": 1.0}, r"`dropout` must be in \[0, 1\)"),
        (nn.Identity(), {"similarity": 1.0}, r"`similarity` must be in \[0, 1\)"),
        (nn.Identity(), {"objective": "none"}, "unknown objective 'none'"),
        (nn.Identity(), {"vectors": torch.ones(5, 3)}, r"\(5, 128\)"),
        (torch.relu, {}, "`body` must be an nn.Module, got builtin"),
    ],
)
def test_what_no_block_can_be_made_of(body: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        SpelaBlock(body, CLASSES, torch.randn(4, 3, 8, 8), **settings)


def test_a_refused_step_changes_nothing() -> None:
    block, x, target = small_block("maps", similarity=0.5, dtype=torch.float32)
    plain, *_ = small_block("maps", dtype=torch.float32)
    for changed, batch, labels, message in (
        (block, x[:1], target[:1], "batches of at least 2"),
        (plain, x, target + 1, r"must hold labels 0\.\.4"),
        (plain, x, target[:3], "one label per sample"),
        (plain, x[:0], target[:0], "there are no rows"),
        (plain, x[:, :2], target, "channels"),
    ):
        before = copy.deepcopy(changed.state_dict())
        with pytest.raises((ValueError, RuntimeError), match=message):
            changed.local_step(batch, labels, LocalAdam(changed.parameters(), lr=0.1))
        for name, value in changed.state_dict().items():
            assert torch.equal(value, before[name]), (message, name)


def test_blocks_that_share_a_parameter_are_refused_before_anything_moves() -> None:
    shared = nn.Linear(6, 6)
    x, target = torch.randn(4, 6), torch.arange(4)
    net = SpelaSequential(*(SpelaBlock(shared, CLASSES, x) for _ in range(2)))
    before = shared.weight.clone()
    for learn in (
        lambda: net.local_step(x, target, LocalSGD(net.parameters(), lr=0.1)),
        lambda: net.local_losses(x, target),
    ):
        with pytest.raises(ValueError, match=r"two layers share a parameter of shape \(6, 6\)"):
            learn()
    assert torch.equal(shared.weight, before)


def test_one_sample_is_refused_before_a_statistic_moves() -> None:
    norm, x = nn.BatchNorm1d(6), torch.randn(4, 6)
    later = SpelaBlock(nn.Linear(6, 6), CLASSES, x, similarity=0.5)
    net = SpelaSequential(
        SpelaBlock(
            nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, (6, 1)), norm), CLASSES, x, hidden=4
        )
    )
    net.append(nn.Flatten()).append(later)
    with pytest.raises(ValueError, match="similarity loss of module 2 compares samples"):
        net.local_losses(x[:1], torch.tensor([0]))
    assert int(norm.num_batches_tracked) == 0


@pytest.mark.parametrize("body", [
    nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Linear(6, 8)),
    nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.Sequential(nn.Dropout(inplace=True)), nn.Linear(6, 8)
    ),
])  # fmt: skip
def test_dropout_in_place_of_the_input_is_refused_when_the_block_is_made(body: nn.Module) -> None:
    x = torch.randn(4, 6)
    keep = x.clone()
    with pytest.raises(ValueError, match="changes its input in place"):
        SpelaBlock(body, 3, x)
    assert torch.equal(x, keep)
    assert not any(module._forward_pre_hooks for module in body.modules())
    net = convert(nn.Sequential(*body, nn.ReLU(), nn.Linear(8, 3)), 3, x, blocks=2).train()
    net(x)
    assert torch.equal(x, keep)
    assert any(getattr(module, "inplace", False) for module in body.modules())  # the caller's stays


class _TimeFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1)


@pytest.mark.parametrize("tokens", [3, 4, 8])
def test_a_body_that_moves_the_batch_axis_is_refused(tokens: int) -> None:
    """Also where the other axis is as long as the sample, or twice as long."""
    with pytest.raises(ValueError, match="must keep the batch axis first"):
        SpelaBlock(nn.Sequential(nn.Linear(5, 6), _TimeFirst()), 3, torch.randn(4, tokens, 5))


def test_a_body_that_folds_rows_in_training_is_refused_before_it_learns() -> None:
    class Folds(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y.reshape(-1, 12) if self.training else y

    block = SpelaBlock(Folds(4, 6), 3, torch.randn(2, 4))
    before = block.body.weight.detach().clone()
    optimizer = LocalSGD(block.parameters(), lr=1.0)
    with pytest.raises(ValueError, match="makes 3 rows of 6 samples"):
        block.local_step(torch.randn(6, 4), torch.tensor([0, 1, 2] * 2), optimizer)
    assert torch.equal(before, block.body.weight)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_pixels_as_whole_numbers_are_refused_with_what_to_do(checkpoint: bool) -> None:
    block, x, target = small_block("maps", checkpoint=checkpoint)
    before = copy.deepcopy(block.state_dict())
    pixels = torch.zeros(x.shape, dtype=torch.uint8)
    optimizer = LocalAdam(block.parameters())
    for run in (block, lambda x: block.local_step(x, target, optimizer)):
        with pytest.raises(TypeError, match=r"torch\.uint8: convert pixels by x\.float\(\) / 255"):
            run(pixels)
        for other in (torch.float32, torch.int64):
            expected = rf"`x` of {other}: its weights are {x.dtype}, convert one"
            with pytest.raises(TypeError, match=expected):
                run(x.to(other))
    torch.testing.assert_close(block.state_dict(), before, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="channels"):  # of another fault, what the body says
        block(x[:, :2])
    embedding = SpelaBlock(nn.Embedding(7, 6), CLASSES, torch.zeros(2, 4, dtype=torch.int64))
    assert embedding(torch.ones(2, 4, dtype=torch.int64)).shape == (2, 4, 6)
    words = nn.Sequential(nn.Embedding(7, 6), nn.Flatten(), nn.Linear(24, 5))
    numbered = SpelaBlock(words, CLASSES, torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(
        RuntimeError, match="shapes cannot be multiplied"
    ):  # whole numbers are its own
        numbered(torch.ones(2, 3, dtype=torch.int64))
