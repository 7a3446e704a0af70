"""Rivals on the same blocks: linear heads beside the formulas, deep supervision beside autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spela import SpelaBlock
from spela.baselines import DeeplySupervisedSequential, LinearHeadBlock
from spela.layers.readout import read_out

SHAPE, CLASSES = (2, 6, 6), 3


def _batch(size: int = 7) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(size, *SHAPE, generator=g, dtype=torch.float64)
    return x, torch.randint(CLASSES, (size,), generator=g)


def _body(inputs: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(inputs, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()).double()


def _linear_heads(similarity: float) -> LinearHeadBlock:
    x, _ = _batch()
    g = torch.Generator().manual_seed(0)
    block = LinearHeadBlock(_body(2, 0), CLASSES, x, readout=16, similarity=similarity, generator=g)
    with torch.no_grad():
        block.projection.normal_(generator=g)
    return block


@pytest.mark.parametrize("similarity", [0.0, 0.99])
def test_a_linear_heads_loss_is_cross_entropy_beside_the_similarity_loss(similarity: float) -> None:
    block, (x, target) = _linear_heads(similarity), _batch()
    loss, y = block.local_loss(x, target)
    made = block.body(x)
    expected = nn.functional.cross_entropy(
        nn.functional.adaptive_avg_pool2d(made, 2).flatten(1) @ block.projection[0], target
    )
    if similarity:
        onehot = nn.functional.one_hot(target, CLASSES).double()
        gram = onehot @ onehot.T * (1 + 1 / (CLASSES - 1)) - 1 / (CLASSES - 1)
        assert block.similarity is not None
        rows = nn.functional.conv2d(made, block.similarity.weight, padding=1).flatten(2)
        rows = rows.std(dim=2, correction=0)
        rows = nn.functional.normalize(rows - rows.mean(dim=1, keepdim=True), dim=1)
        like = (rows @ rows.T - gram).square().mean()
        expected = (1 - similarity) * expected + similarity * like
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y, made.detach())
    parameters = list(block.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_a_linear_head_answers_with_its_logits_and_learns() -> None:
    block, (x, target) = _linear_heads(0.0), _batch()
    y = block(x)
    expected = read_out(y, (2, 2)) @ block.projection[0]
    torch.testing.assert_close(block.scores(y), expected.detach(), rtol=1e-12, atol=1e-12)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    losses = [float(block.local_step(x, target, optimizer)[0]) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_linear_head_starts_at_the_logarithm_of_the_classes() -> None:
    x, target = _batch()
    block = LinearHeadBlock(_body(2, 0), CLASSES, x, readout=16)
    assert float(block.local_loss(x, target)[0].detach()) == pytest.approx(1.0986123, abs=1e-6)
    block.reset_parameters()
    assert not block.projection.any()


def test_behind_spelas_head_layers_is_a_linear_classifier() -> None:
    """What tells what class vectors bring: the same layers, and logits of their output."""
    x, target = _batch()
    ours, block = (
        kind(_body(2, 0), CLASSES, x, readout=16, channels=3, hidden=5)
        for kind in (SpelaBlock, LinearHeadBlock)
    )
    for mine, theirs in zip(ours.head.parameters(), block.head.parameters(), strict=True):
        assert mine.shape == theirs.shape
    with torch.no_grad():
        block.projection.normal_()
    loss, _ = block.local_loss(x, target)
    rows = block.head(block.body(x))
    assert rows.shape == (len(x), 5)
    expected = nn.functional.cross_entropy(rows @ block.projection[0], target)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    losses = [float(block.local_step(x, target, optimizer)[0]) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


def _supervised(count: int) -> DeeplySupervisedSequential:
    x, _ = _batch()
    g = torch.Generator().manual_seed(1)
    blocks = []
    for index in range(count):
        blocks.append(SpelaBlock(_body(x.shape[1], index), CLASSES, x, projection=8, generator=g))
        x = blocks[-1].body.eval()(x)
        blocks[-1].body.train()
    return DeeplySupervisedSequential(*blocks)


def test_deep_supervision_is_one_gradient_of_all_losses() -> None:
    net, (x, target) = _supervised(3), _batch()
    first = [p.detach().clone() for p in net.parameters()]
    # The same by hand: no block detaches the output of the one before it.
    total, h = torch.zeros((), dtype=torch.float64), x
    for block in net:
        h = block.body(h)
        rows = read_out(h, block.head.pooled) @ block.projection[0]
        cosines = nn.functional.normalize(rows, dim=1) @ block.vectors.T
        total = total + nn.functional.cross_entropy(20 * cosines, target)
    gradients = torch.autograd.grad(total, list(net.parameters()))
    losses = net.local_step(x, target, torch.optim.SGD(net.parameters(), lr=0.1))
    assert float(losses.sum()) == pytest.approx(float(total.detach()), rel=1e-6)
    for after, before, gradient in zip(net.parameters(), first, gradients, strict=True):
        torch.testing.assert_close(after.detach(), before - 0.1 * gradient, rtol=1e-5, atol=1e-7)


def test_the_first_block_hears_of_the_last_ones_loss_under_deep_supervision_alone() -> None:
    net, (x, target) = _supervised(2), _batch()
    weight = net[0].body[0].weight
    for together, expected in ((True, True), (False, False)):
        _, last = net.local_losses(x, target) if together else (None, None)
        if last is None:
            h = net[0](x).detach()
            last, _ = net[1].local_loss(h, target)
        found = torch.autograd.grad(last, weight, allow_unused=True)[0]
        assert (found is not None and bool(found.any())) is expected


def test_deep_supervision_calls_the_hooks_of_network_and_blocks() -> None:
    net, (x, target) = _supervised(2), _batch()
    plain = net.local_losses(x * 2, target)
    net.register_forward_pre_hook(lambda module, args: args[0] * 2)
    torch.testing.assert_close(net.local_losses(x, target), plain)
    seen = []
    net[0].register_forward_hook(lambda module, args, y: seen.append(y.shape))
    net[1].register_forward_pre_hook(lambda module, args: torch.zeros_like(args[0]))
    losses = net.local_step(x, target, torch.optim.SGD(net.parameters(), lr=0.1))
    assert seen == [(7, 4, 6, 6)]
    torch.testing.assert_close(losses[0], plain[0].detach())
    assert not torch.allclose(losses[1], plain[1].detach())


def test_deep_supervision_takes_blocks_alone_and_checks_before_it_moves() -> None:
    with pytest.raises(ValueError, match="SpelaBlocks alone"):
        DeeplySupervisedSequential()
    with pytest.raises(ValueError, match="SpelaBlocks alone"):
        DeeplySupervisedSequential(nn.Linear(2, 2))  # type: ignore[arg-type]
    net, (x, target) = _supervised(2), _batch()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"labels 0\.\.2"):
        net.local_step(x, target + 1, torch.optim.SGD(net.parameters(), lr=0.1))
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_frozen_network_gives_its_losses_and_stays() -> None:
    net = _supervised(2).requires_grad_(False)
    before = {name: value.clone() for name, value in net.named_parameters()}
    x = torch.randn(4, *net[0].sample_shape, dtype=net[0].sample_dtype)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    assert net.local_step(x, torch.tensor([0, 1, 0, 1]), optimizer).shape == (2,)
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters())
