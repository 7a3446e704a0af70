"""What a block's head reads, and what it answers for each sample."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from spela.layers.similarity import Similarity
from spela.optim import LocalAdam, LocalSGD
from tests.spela.layers.small_blocks import CLASSES, small_block


def test_dropout_and_readout_are_the_heads_alone() -> None:
    block, x, target = small_block("maps", dropout=0.5)
    losses = {block.local_loss(x, target)[0].item() for _ in range(4)}
    assert len(losses) == 4
    block.eval()
    assert len({block.local_loss(x, target)[0].item() for _ in range(4)}) == 1
    torch.testing.assert_close(block(x), block.body(x), rtol=0, atol=0)
    assert [tuple(p.shape) for p in block.head_parameters()] == [(1, 24, 7)]


def test_scores_are_cosines_and_images_of_another_size_are_read_out_alike() -> None:
    block, x, _ = small_block("maps")
    block.eval()
    rows = nn.functional.adaptive_avg_pool2d(block(x), (2, 2)).flatten(1) @ block.projection[0]
    expected = nn.functional.normalize(rows, dim=1) @ block.vectors.T
    torch.testing.assert_close(block.scores(block(x)), expected, rtol=1e-12, atol=1e-12)
    larger = torch.randn(3, 3, 15, 11, dtype=torch.float64)
    assert block.scores(block(larger)).shape == (3, CLASSES)
    assert block.scores(block(x[:0])).shape == (0, CLASSES)


def test_a_hidden_layer_answers_for_each_sample_alone() -> None:
    block, x, target = small_block("rows", hidden=5)
    optimizer = LocalAdam(block.parameters(), lr=0.01)
    block.local_step(x, target, optimizer)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    together = block.scores(block(x))
    torch.testing.assert_close(together[3:4], block.scores(block(x[3:4])))
    for name, value in block.state_dict().items():
        assert torch.equal(value, before[name]), name
    # One sample alone learns, by the running statistics: its step is that of evaluation.
    other = copy.deepcopy(block).eval()
    ours, theirs = (
        b.local_step(x[:1], target[:1], LocalSGD(b.parameters(), 0.1)) for b in (block, other)
    )
    torch.testing.assert_close(ours, theirs)
    for name, value in block.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], msg=name)
        if "norm.running" in name or "num_batches" in name:
            assert torch.equal(value, before[name]), name
    assert {id(p) for p in block.head_parameters()} == {
        id(p) for p in (block.projection, *block.head.hidden.parameters())
    }


def test_a_heads_convolution_answers_for_each_sample_alone_and_is_of_maps_only() -> None:
    block, x, target = small_block("maps", channels=4)
    block.local_step(x, target, LocalAdam(block.parameters(), lr=0.01))
    y = block.body.eval()(x)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    together = block.scores(y)
    torch.testing.assert_close(together[3:4], block.scores(y[3:4]))
    torch.testing.assert_close(together, block.eval().scores(y))
    for name, value in block.state_dict().items():
        assert torch.equal(value, before[name]), name
    for kind in ("tokens", "rows"):
        assert small_block(kind, channels=4)[0].head.convolution is None


def test_a_similarity_loss_of_its_own_starts_from_its_generator() -> None:
    first, second = (
        Similarity((4, 8, 8), generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert torch.equal(first.weight, second.weight)
    assert 0.1 < first.weight.abs().max() <= 1 / 6
    y = torch.zeros(4, 4, 8, 8, requires_grad=True)  # dead maps: no direction, and no NaN
    first(y, torch.eye(4)).backward()
    assert torch.equal(y.grad, torch.zeros_like(y))


def test_one_sample_is_scored_by_its_own_statistics_too() -> None:
    block, x, _ = small_block("rows", hidden=5)
    norm = block.head.hidden.norm
    norm.running_mean = norm.running_var = None
    nn.init.normal_(norm.bias)  # all that one sample's own statistics leave
    rows = nn.functional.leaky_relu(norm.bias, 0.01)[None] @ block.projection[0]
    expected = nn.functional.normalize(rows, dim=1) @ block.vectors.T
    torch.testing.assert_close(block.eval().scores(block(x[:1])), expected.detach())


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6)])
def test_the_similarity_of_one_position_is_of_its_values(shape: tuple[int, ...]) -> None:
    y = torch.randn(5, *shape, requires_grad=True)
    vectors = torch.eye(3)[torch.tensor([0, 1, 2, 0, 1])]
    Similarity(shape)(y, vectors).backward()
    assert y.grad.abs().max() > 1e-4
