"""spela.convert: the same outputs before training, local learning after, and errors that name a module."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import spela
from spela import Frozen, RowNorm, SpelaConv2d, SpelaLinear, SpelaSequential, optim

G = torch.Generator().manual_seed(5)
ROWS = torch.randn(9, 12, generator=G)
IMAGES = torch.randn(6, 2, 16, 16, generator=G)


def _linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 20),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Sequential(nn.Linear(20, 16, bias=False), nn.LeakyReLU(0.2)),
        nn.Linear(16, 14),
        nn.Tanh(),
        nn.Linear(14, 13),
        nn.GELU(),
        nn.Linear(13, 12),
        nn.ELU(),
        nn.Linear(12, 11),
        nn.PReLU(),
        nn.Linear(11, 5),
    ).eval()


def _moved(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    """A batch norm that has seen data, with factors of both signs."""
    for name, value in {**norm.state_dict()}.items():
        if value.dim():
            value.copy_(torch.rand_like(value) + 0.3)
        if name == "weight":
            value[::2] *= -1
    return norm


def _convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        _moved(nn.BatchNorm2d(6)),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, bias=False),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.LeakyReLU(0.1),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


def _activations(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    outputs = []
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            continue
        x = module(x)
        outputs.append(x.clone())
    return outputs


def test_a_linear_stack_gives_the_same_activations_and_answers() -> None:
    model = _linear()
    net = spela.convert(model, 5, ROWS)
    expected = _activations(model, ROWS)
    x = ROWS
    found = []
    for module in net:
        x = module(x)
        found.append(x)
    assert [m.activation for m in net.local_layers] == [
        "relu", "leaky_relu", "tanh", "gelu", "elu", "prelu", "identity",
    ]  # fmt: skip
    # After each activation, the dropout and the last layer.
    for mine, index in zip(found, [1, 2, 4, 6, 8, 10, 12, 13], strict=True):
        torch.testing.assert_close(mine, expected[index], rtol=1e-5, atol=1e-6)
    assert torch.equal(net.predict(ROWS), model(ROWS).argmax(dim=1))


def test_a_convolution_stack_gives_the_same_outputs() -> None:
    model = _convolutional()
    net = spela.convert(model, 5, IMAGES)
    kinds = [type(m).__name__ for m in net]
    assert kinds == ["SpelaConv2d", "SpelaConv2d", "ReLU", "SpelaConv2d", "Flatten", "SpelaLinear"]
    assert [m.pool for m in net if isinstance(m, SpelaConv2d)] == ["max", "max", "avg"]
    x, expected = IMAGES, _activations(model, IMAGES)
    for module, index in zip(net, [3, 5, 6, 9, 10, 11], strict=True):
        x = module(x)
        torch.testing.assert_close(x, expected[index], rtol=1e-5, atol=1e-6)
    assert torch.equal(net.predict(IMAGES), model(IMAGES).argmax(dim=1))


def test_what_spela_layers_have_no_room_for_stays_between_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same"),
        nn.BatchNorm2d(4, affine=False),
        nn.SiLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        RowNorm("rms"),
        nn.Linear(16, 8),
        _moved(nn.BatchNorm1d(8)),
        nn.GELU(approximate="tanh"),
        nn.Linear(8, 7),
        nn.ReLU6(inplace=True),
        nn.Linear(7, 3),
        nn.Identity(),
    ).eval()
    net = spela.convert(model, 3, IMAGES)
    assert torch.equal(net.predict(IMAGES), model(IMAGES).argmax(dim=1))
    x = IMAGES
    for module in net:
        x = module(x)
    torch.testing.assert_close(x, model(IMAGES), rtol=1e-5, atol=1e-6)
    trained = {id(p) for layer in net.local_layers for p in layer.parameters()}
    assert all(p.requires_grad == (id(p) in trained) for p in net.parameters())
    # In-place modules would overwrite what a layer's gradient needs.
    net.train().local_losses(IMAGES, torch.arange(6) % 3).sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_the_original_is_neither_changed_nor_shared() -> None:
    model = _convolutional().train()
    before = copy.deepcopy(model.state_dict())
    net = spela.convert(model, 5, IMAGES)
    assert net.training
    assert model.training
    assert model[2].inplace
    optimizer = optim.LocalAdam(net.parameters(), lr=0.1)
    net.local_step(IMAGES, torch.arange(6) % 5, optimizer)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(net[0].weight, model[0].weight)


def test_a_converted_network_goes_on_learning_where_backprop_stopped() -> None:
    from spela.data import load_dataset

    data = load_dataset("digits")
    x, y = data.train_x, data.train_y
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    backprop = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(30):
        backprop.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        backprop.step()
    net = spela.convert(model, 10, x[:2])

    def right(scores: Tensor) -> float:
        return (scores.argmax(dim=1) == data.test_y).double().mean().item()

    start = right(net(data.test_x))
    assert start == right(model(data.test_x))
    local = optim.LocalAdam(net.parameters(), lr=3e-3)
    for _ in range(60):
        net.local_step(x, y, local)
    assert right(net(data.test_x)) > max(start, 0.9)


def test_dtype_mode_and_frozen_layers_carry_over() -> None:
    model = _linear().double()
    model[0].requires_grad_(False)
    net = spela.convert(model, 5, ROWS.double())
    assert not net.training
    assert all(v.dtype == torch.float64 for v in net.state_dict().values())
    assert not net[0].weight.requires_grad
    assert net[2].weight.requires_grad


def test_a_backbone_in_front_stays_as_it_is() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(12, 10), nn.BatchNorm1d(10), nn.Dropout(0.5))
    head = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 5))
    net = spela.convert(head, 5, ROWS, frozen=backbone).train()
    assert isinstance(net[0], Frozen)
    before = copy.deepcopy(net[0].state_dict())
    losses = net.local_losses(ROWS, torch.arange(9) % 5)
    losses.sum().backward()
    optimizer = optim.LocalAdam(net.parameters(), lr=0.1, weight_decay=0.1)
    net.local_step(ROWS, torch.arange(9) % 5, optimizer)
    assert net.training
    assert not backbone[2].training
    for name, value in net[0].state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())
    # The same without convert.
    plain = SpelaSequential(Frozen(backbone), SpelaLinear(10, 8, 5)).train()
    assert torch.equal(plain[0](ROWS), net[0](ROWS))
    with pytest.raises(TypeError, match="`module` must be an nn"):
        Frozen("resnet")


class _OwnLinear(nn.Linear):
    pass


_TIED = nn.Linear(12, 12)
REFUSED = {
    "no counterpart": ([nn.Linear(12, 8), nn.Sequential(nn.ReLU(), nn.LayerNorm(8))],
                       r"module '1.1' \(LayerNorm\) has no SPELA counterpart; accepted: Linear"),
    "first of two": ([nn.LSTM(12, 3), nn.LayerNorm(8)], r"module '0' \(LSTM\)"),
    "subclass": ([_OwnLinear(12, 8)], r"module '0' \(_OwnLinear\) has no"),
    "softmax": ([nn.Linear(12, 5), nn.Softmax(1)], r"module '1' \(Softmax\) has no"),
    "after the last": ([nn.Linear(12, 5), nn.Dropout()], r"'1' \(Dropout\) comes after the last"),
    "nothing learns": ([nn.Flatten(), nn.ReLU()], "nothing in it could learn"),
    "wrong input": ([nn.Linear(12, 8), nn.Linear(9, 5)], r"'1' \(Linear\) does not take.*\(9, 8\)"),
    "tied": ([_TIED, nn.ReLU(), _TIED], r"'2' \(Linear\) shares a weight with module '0'"),
    "one output": ([nn.Linear(12, 1)], r"'0' \(Linear\) has one output"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_errors_name_the_module(case: str) -> None:
    modules, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        spela.convert(nn.Sequential(*modules), 5, ROWS)


def test_errors_of_images_and_arguments() -> None:
    reflecting = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match=r"'0' \(Conv2d\) pads by 'reflect'"):
        spela.convert(reflecting, 5, IMAGES)
    with pytest.raises(ValueError, match=r"'0' \(Linear\) must get rows \(B, I\)"):
        spela.convert(nn.Sequential(nn.Linear(16, 4)), 5, IMAGES)
    two = nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2, return_indices=True))
    with pytest.raises(ValueError, match=r"'1' \(MaxPool2d\) returns more than a tensor"):
        spela.convert(two, 5, IMAGES)
    with pytest.raises(TypeError, match=r"nn.Sequential, got Linear"):
        spela.convert(nn.Linear(12, 5), 5, ROWS)
    with pytest.raises(ValueError, match="`num_classes` must be at least 2, got 1"):
        spela.convert(_linear(), 1, ROWS)
