"""Convolution and linear layers in one network."""

from __future__ import annotations

import torch
from torch import nn

from spela import SpelaConv2d, SpelaLinear, SpelaSequential, optim
from tests.spela.fused_steps import check_network_steps


def _net() -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    first = SpelaConv2d(1, 16, 3, 10, (4, 4), padding=1, symmetric_dim=20, generator=g)
    return SpelaSequential(
        first,
        SpelaConv2d(
            16, 16, 3, 10, (2, 2), padding=1, symmetric_dim=20, objective="softmax",
            grouping=first.grouping, generator=g,
        ),
        nn.Flatten(),
        SpelaLinear(64, 64, 10, objective="softmax", generator=g),
    )  # fmt: skip


def test_a_network_learns_digits() -> None:
    from spela.data import load_dataset

    data = load_dataset("digits")
    net, x, y = _net(), data.train_x, data.train_y
    optimizer = optim.LocalAdam(net.parameters(), lr=0.03)
    for start in range(0, 100 * 200, 100):
        rows = torch.arange(start, start + 100) % len(x)
        net.local_step(x[rows], y[rows], optimizer)
    net.eval()
    for scores in net.layer_scores(data.test_x):
        assert (scores.argmax(1) == data.test_y).double().mean() > 0.9


def test_network_steps_equal_summed_losses() -> None:
    g = torch.Generator().manual_seed(3)
    x, target = torch.randn(12, 1, 8, 8, generator=g).double(), torch.arange(12) % 10
    check_network_steps(_net().double(), x, target, rtol=1e-9)


def test_early_exit_on_maps() -> None:
    net = _net().eval()
    x = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    first, _, last = net.layer_scores(x)
    top = first.topk(2, dim=1).values
    threshold = (top[:, 0] - top[:, 1]).median().item()
    labels = net.predict(x, exit_threshold=threshold)
    sure = top[:, 0] - top[:, 1] >= threshold
    assert torch.equal(labels[sure], first.argmax(1)[sure])
    assert torch.equal(net.predict(x, exit_threshold=9.0), last.argmax(1))
    assert 0 < sure.sum() < 40
