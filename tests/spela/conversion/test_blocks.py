"""Networks converted by blocks: they keep their answers and learn as their parts alone would."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from spela import SpelaBlock, convert
from spela.optim import LocalAdam, LocalSGD
from tests.spela.networks_to_cut import NETWORKS, small_cnn, small_resnet, stored_bytes


def test_blocks_learn_like_the_gradient_of_their_part_alone() -> None:
    """Two blocks against two parts with a loss each, by autograd."""
    torch.manual_seed(0)
    x, target = torch.randn(8, 3, 16, 16), torch.arange(8)
    net = convert(small_cnn(), 10, x, blocks=2, readout=32, projection=12)
    net.eval()  # without dropout
    first, second = net.local_layers
    optimizer = LocalSGD(net.parameters(), lr=0.1)
    others = [copy.deepcopy(block) for block in net.local_layers]
    losses = net.local_step(x, target, optimizer)
    y, found = x, []
    for other in others:
        y = other.body(y.detach())
        rows = (
            y
            if other.projection is None
            else nn.functional.adaptive_avg_pool2d(y, (2, 2)).flatten(1) @ other.projection[0]
        )
        cosines = nn.functional.normalize(rows, dim=1) @ other.vectors.T
        loss = nn.functional.cross_entropy(20 * cosines, target)
        loss.backward()
        found.append(loss.detach())
        with torch.no_grad():
            for parameter in other.parameters():
                parameter -= 0.1 * parameter.grad
    torch.testing.assert_close(losses, torch.stack(found))
    for block, other in zip((first, second), others, strict=True):
        for ours, theirs in zip(block.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "tail", [[nn.Identity()], [nn.Dropout()], [nn.Flatten()], [nn.Dropout(0.5), nn.Identity()]]
)
def test_what_only_hands_the_logits_on_leaves_the_answers(tail: list[nn.Module]) -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    model, x = nn.Sequential(*layers, *tail).eval(), torch.randn(50, 8)
    net = convert(model, 3, x, blocks=2, dropout=0.5)
    assert torch.equal(net.predict(x), model(x).argmax(dim=1))
    # What is dropped of a head's features must not be the logits themselves.
    assert [block.dropout.p for block in net.local_layers] == [0.5, 0.0]
    rows = convert(nn.Sequential(*layers, *tail), 3, torch.randn(5, 4, 8), blocks=1)  # 4 tokens
    assert rows.predict(torch.randn(6, 4, 8)).shape == (6,)


def test_a_refused_network_leaves_the_sample_as_it_was() -> None:
    x = torch.randn(4, 8)
    before = x.clone()
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="changes its input in place"):
        convert(model, 3, x, blocks=2)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", ["resnet", "vit", "sequential"])
@pytest.mark.parametrize("blocks", [1, 2, "layers"])
def test_converted_networks_keep_their_answers_and_learn(name: str, blocks: Any) -> None:
    torch.manual_seed(0)
    make, size = NETWORKS[name]
    model, x = make().eval(), torch.randn(10, 3, size, size)
    net = convert(model, 10, x[:2], blocks=blocks)
    assert all(isinstance(layer, SpelaBlock) for layer in net.local_layers)
    assert not net.training
    if name != "vit":  # whose last layer starts with zeros
        assert torch.equal(net.predict(x), model(x).argmax(dim=1))
    target = torch.arange(10)
    net.train()
    optimizer = LocalAdam(net.parameters(), lr=1e-3)
    losses = [float(net.local_step(x, target, optimizer)[-1]) for _ in range(5)]
    assert losses[-1] < losses[0]


def test_pretrained_weights_of_other_classes_go_through_a_projection() -> None:
    model, x = small_resnet(20), torch.randn(2, 3, 32, 32)
    net = convert(model, 10, x, cut=["layer2"], similarity=0.1, dropout=0.2, checkpoint=True)
    assert [block.projection.shape for block in net.local_layers] == [(1, 128, 128), (1, 20, 128)]
    assert net.training
    assert net(x).shape == (2, 10)
    with pytest.raises(TypeError, match="readout: settings of blocks"):
        convert(small_cnn(), 10, x, readout=3)
    with pytest.raises(TypeError, match="cut it into `blocks`"):
        convert(model, 10, x)  # type: ignore[arg-type]


def test_checkpointing_keeps_the_inputs_of_a_blocks_own_parts() -> None:
    x = torch.randn(64, 16)
    model = nn.Sequential(*(m for _ in range(8) for m in (nn.Linear(16, 16), nn.Tanh(), nn.Tanh())))
    nets = [convert(model, 16, x, blocks=1, checkpoint=flag) for flag in (False, True)]
    assert torch.equal(nets[0].local_layers[0](x), nets[1].local_layers[0](x))
    plain, kept = (stored_bytes(net.local_layers[0], x) for net in nets)
    assert kept < plain / 2
    assert len(nets[1].local_layers[0].body) == 8  # each runs again alone


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": 2, "conv_scale": 30.0}, "`conv_scale` is of SpelaConv2d"),
        ({"cut": "0", "symmetric_dim": 8}, "`symmetric_dim` is of SpelaConv2d"),
        ({"blocks": 2, "sample_input": [[1.0]]}, "`sample_input` must be a tensor"),
        (
            {"blocks": 2, "sample_input": torch.ones(2, 5)},
            r"does not take an input \(2, 5\) of torch.float32",
        ),
    ],
)
def test_what_blocks_do_not_take(settings: dict[str, Any], message: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    with pytest.raises((ValueError, TypeError), match=message):
        convert(model, 3, **{"sample_input": torch.ones(2, 6), **settings})


def test_a_backbone_stays_as_it_is_where_a_conversion_is_refused() -> None:
    backbone = nn.Sequential(nn.Linear(4, 8), nn.Dropout())
    for model in (nn.Sequential(nn.ReLU()), nn.Sequential(nn.Linear(9, 3))):
        with pytest.raises(ValueError, match=r"no Linear or Conv2d|does not take an input"):
            convert(model, 3, torch.randn(5, 4), frozen=backbone)
        assert backbone[1].training
        assert all(parameter.requires_grad for parameter in backbone.parameters())
    net = convert(nn.Sequential(nn.Linear(8, 3)), 3, torch.randn(5, 4), frozen=backbone)
    assert net[0].module is backbone
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_module_that_runs_twice_in_a_block_gets_both_gradients(checkpoint: bool) -> None:
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), layer, nn.Linear(6, 3))
    x, target = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    net = convert(model, 3, x, blocks=1, checkpoint=checkpoint)
    loss = net.local_losses(x, target).sum()
    block = net.local_layers[0]
    (found,) = torch.autograd.grad(loss, [next(block.body.parameters())])
    y = nn.functional.normalize(model(x), dim=1) @ nn.functional.normalize(block.vectors, dim=1).T
    own = nn.functional.cross_entropy(20 * y, target)
    torch.testing.assert_close(found, torch.autograd.grad(own, [layer.weight])[0])
