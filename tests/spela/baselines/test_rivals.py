"""The rivals' rules against autograd and by hand, learning, any optimizer, determinism."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from spela.baselines import (
    BackpropSequential,
    ForwardForwardLayer,
    ForwardForwardSequential,
    MonoForwardLayer,
    MonoForwardSequential,
    PepitaSequential,
)
from spela.baselines.hidden import HiddenLayer
from spela.layers import RowNorm

F = nn.functional
TARGET = torch.tensor([0, 1, 2, 0, 1, 2, 2])


@pytest.fixture(autouse=True)
def _double() -> object:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def _compare(found: list[tuple[Tensor, Tensor]], loss: Tensor) -> None:
    expected = torch.autograd.grad(loss, [parameter for parameter, _ in found])
    for (_, ours), theirs in zip(found, expected, strict=True):
        assert theirs.abs().max() > 1e-6
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "elu", "identity"])
def test_mono_forward_gradients_are_autograds(activation: str) -> None:
    layer = MonoForwardLayer(5, 8, 3, activation=activation, negative_slope=0.1)
    x = torch.randn(7, 5)
    with torch.no_grad():
        loss, y, found = layer.local_gradients(x, TARGET)
    torch.testing.assert_close(y, layer(x))
    assert len(found) == 3
    _compare(found, F.cross_entropy(layer(x) @ layer.projection.T, TARGET))
    torch.testing.assert_close(loss, F.cross_entropy(layer.scores(y), TARGET))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_forward_forward_gradients_are_autograds(activation: str) -> None:
    layer = ForwardForwardLayer(5, 8, activation=activation, threshold=0.3, sharpness=4.0)
    x, sign = torch.randn(7, 5), torch.tensor([1.0, 1, 1, -1, -1, -1, 1])
    with torch.no_grad():
        loss, _, found = layer.local_gradients(x, sign)
    expected = F.softplus(-sign * 4.0 * (layer(x).square().mean(1) - 0.3)).mean()
    torch.testing.assert_close(loss, expected)
    _compare(found, expected)


def test_forward_forward_goodness_by_hand() -> None:
    layer = ForwardForwardLayer(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 0.0]]))
        layer.bias.zero_()
    # z = (1*1 + 2*2, -1) -> h = (5, 0): goodness (25 + 0) / 2
    assert layer.goodness(layer(torch.tensor([[1.0, 2.0]]))).item() == 12.5


def test_the_label_is_written_over_the_first_values() -> None:
    net = ForwardForwardSequential(ForwardForwardLayer(5, 4), num_classes=3, label_scale=2.0)
    x = torch.full((2, 1, 5), 0.5)
    assert net.embed(x, torch.tensor([2, 0])).tolist() == [[0, 0, 2, 0.5, 0.5], [2, 0, 0, 0.5, 0.5]]
    with pytest.raises(ValueError, match="only 3"):
        net.embed(torch.zeros(1, 3), torch.tensor([0]))


def test_forward_forward_asks_every_label_and_leaves_the_first_layer_out() -> None:
    layers = [ForwardForwardLayer(6, 8), ForwardForwardLayer(8, 4), ForwardForwardLayer(4, 9)]
    net = ForwardForwardSequential(
        RowNorm(), layers[0], RowNorm(), layers[1], RowNorm(), layers[2], num_classes=3
    )
    x, norm = torch.rand(5, 6), RowNorm()
    scores = net.layer_scores(x)
    for label in range(3):
        h = norm(net.embed(x, torch.full((5,), label)))
        goodness = []
        for layer in layers:
            h = layer(h)
            goodness.append(layer.goodness(h))
            h = norm(h)
        torch.testing.assert_close(scores[0][:, label], goodness[0])
        torch.testing.assert_close(scores[1][:, label], goodness[1])
        torch.testing.assert_close(scores[2][:, label], goodness[1] + goodness[2])
    assert torch.equal(net.predict(x), scores[2].argmax(1))


def test_wrong_labels_are_all_the_wrong_ones() -> None:
    net = ForwardForwardSequential(ForwardForwardLayer(6, 8), num_classes=4)
    target = torch.full((400,), 2)
    counts = torch.bincount(net.wrong_labels(target), minlength=4)
    assert counts[2] == 0
    assert all(counts[k] > 90 for k in (0, 1, 3))  # 133 expected, sd 9.4


def test_pepita_by_hand() -> None:
    net = PepitaSequential(
        nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False), feedback_scale=1.0
    )
    first, _, output = net
    with torch.no_grad():
        first.weight.copy_(torch.eye(2))
        output.weight.copy_(torch.zeros(2, 2))
        net.feedback.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    # softmax(0, 0) = (1/2, 1/2), label 0: e = (-1/2, 1/2); x' = (1, 1) + (-1/2, 1) = (1/2, 2).
    # Hidden: (h - h') x'^T = (1/2, -1) x'^T; output: e' h'^T with e' = e, as the output weights are 0.
    ((loss, found),) = net.local_gradients(torch.ones(1, 2), torch.tensor([0]))
    assert loss.item() == pytest.approx(0.6931471805599453)
    assert found[0][1].tolist() == [[0.25, 1.0], [-0.5, -2.0]]
    assert found[1][1].tolist() == [[-0.25, -1.0], [0.25, 1.0]]


def test_pepita_output_is_the_cross_entropys_gradient_of_the_second_pass() -> None:
    net = PepitaSequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x = torch.randn(7, 4)
    ((_, found),) = net.local_gradients(x, TARGET)
    with torch.no_grad():
        error = net(x).softmax(1) - F.one_hot(TARGET, 3)
        hidden = net[2](net[1](x + error @ net.feedback.T))
    loss = F.cross_entropy(net[3](hidden), TARGET)
    weight, bias = torch.autograd.grad(loss, [net[3].weight, net[3].bias])
    torch.testing.assert_close(found[2][1], weight)
    torch.testing.assert_close(found[3][1], bias)


def test_pepita_drops_the_same_units_in_both_passes() -> None:
    net = PepitaSequential(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, 3), feedback_scale=1.0)
    ((_, found),) = net.local_gradients(torch.randn(1, 4), torch.tensor([1]))
    hidden, output = found[0][1], found[2][1]
    dropped = (output == 0).all(dim=0)
    assert 10 < dropped.sum() < 40
    # With other masks in the first pass, h - h' would not be zero at these units.
    assert torch.equal((hidden == 0).all(dim=1), dropped)


def _ff() -> nn.Module:
    layers = (
        ForwardForwardLayer(16, 32, gain=2.4),
        RowNorm(),
        ForwardForwardLayer(32, 32, gain=2.4),
    )
    return ForwardForwardSequential(RowNorm(), *layers, num_classes=3, label_scale=2)


def _mono() -> nn.Module:
    return MonoForwardSequential(MonoForwardLayer(16, 32, 3), MonoForwardLayer(32, 32, 3))


def _pepita() -> nn.Module:
    return PepitaSequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))


@pytest.mark.parametrize("build", [_ff, _mono, _pepita], ids=["ff", "mono", "pepita"])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, 0.01),
        lambda p: torch.optim.RMSprop(p, 0.003),
    ],
    ids=["sgd", "adamw", "rmsprop"],
)
def test_any_optimizer_trains_every_layer(
    build: Callable[[], nn.Module], optimizer: Callable[..., torch.optim.Optimizer]
) -> None:
    net = build()
    chosen = optimizer(net.parameters())
    y = torch.randint(3, (60,))
    x = 0.3 * torch.rand(60, 16)
    x[torch.arange(60), 5 + y] += 1  # the class is a bright pixel
    before = {name: value.clone() for name, value in net.named_parameters()}
    losses = torch.stack([net.local_step(x, y, chosen) for _ in range(150)])  # type: ignore[operator]
    for name, value in net.named_parameters():
        assert not torch.equal(value, before[name]), name
        assert value.grad is None
    assert (losses[-1] < 0.8 * losses[0]).all()
    accuracy = (net.predict(x) == y).double().mean()  # type: ignore[operator]
    assert accuracy > 0.9  # chance: 1/3


def _backprop() -> nn.Module:
    return BackpropSequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))


@pytest.mark.parametrize("build", [_ff, _mono, _pepita, _backprop])
def test_a_batch_or_an_optimizer_that_does_not_fit_is_refused_before_anything_moves(
    build: Callable[[], nn.Module],
) -> None:
    net, other = build(), build()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x, y = torch.rand(7, 16), TARGET
    own, others = (torch.optim.SGD(each.parameters(), 0.1) for each in (net, other))
    for batch, labels, optimizer, message in (
        (x, y, others, "does not hold a parameter"),
        (x[:0], y[:0], own, "no rows"),
        (x, y[:4], own, "one label per sample"),
        (x, y.clamp(max=1) * 3, own, r"labels 0\.\.2, got 3"),
        # Cross-entropy leaves this label out.
        (x, torch.where(y == 1, -100, y), own, r"labels 0\.\.2, got -100"),
    ):
        with pytest.raises(ValueError, match=message):
            net.local_step(batch, labels, optimizer)  # type: ignore[operator]
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_starts_are_drawn_in_their_bounds_and_fill_them() -> None:
    generator = torch.Generator().manual_seed(0)
    pepita = PepitaSequential(
        nn.Linear(600, 8), nn.ReLU(), nn.Linear(8, 5), feedback_scale=0.05, generator=generator
    )
    mono = MonoForwardLayer(25, 400, 10, generator=generator)
    hidden = HiddenLayer(25, 1000, gain=math.sqrt(6), generator=generator)
    for drawn, bound in (
        (pepita.feedback, 0.05 * math.sqrt(6 / 600)),
        (mono.projection, 1 / math.sqrt(400)),
        (hidden.bias, 1 / math.sqrt(25)),
    ):
        assert 0.99 * bound < float(drawn.detach().abs().max()) <= bound


def test_a_label_of_no_class_moves_no_statistics_of_backprop() -> None:
    net = BackpropSequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    with pytest.raises(ValueError, match="target"):
        net.local_step(
            torch.rand(4, 6), torch.full((4,), 3), torch.optim.SGD(net.parameters(), 0.1)
        )
    assert net[1].num_batches_tracked == 0
    assert not net[1].running_mean.any()


def test_a_frozen_network_gives_its_loss_and_stays() -> None:
    net = BackpropSequential(nn.Linear(6, 3)).requires_grad_(False)
    before = net[0].weight.clone()
    loss = net.local_step(torch.rand(4, 6), TARGET[:4], torch.optim.SGD(net.parameters(), 0.1))
    assert loss.isfinite().all()
    assert torch.equal(net[0].weight, before)


def test_forward_forward_refuses_pixels_beside_its_label() -> None:
    net = ForwardForwardSequential(RowNorm(), ForwardForwardLayer(8, 16), num_classes=3)
    with pytest.raises(TypeError, match=r"`x` is torch.uint8: convert it, pixels by x.float"):
        net.predict(torch.zeros(2, 8, dtype=torch.uint8))
