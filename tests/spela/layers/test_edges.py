"""What a layer does with nothing, with arrays, with other layers' states, and with rows without direction."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spela_kernels as sk
from spela import RowNorm, SpelaBlock, SpelaConv2d, SpelaLinear, SpelaSequential, convert, optim

G = torch.Generator().manual_seed(1)
ROWS, IMAGES = torch.randn(6, 6, generator=G), torch.randn(6, 1, 8, 8, generator=G)
TARGET = torch.arange(6) % 3


def _linear(**settings: Any) -> SpelaLinear:
    return SpelaLinear(6, 16, 3, generator=torch.Generator().manual_seed(0), **settings)


def _conv(**settings: Any) -> SpelaConv2d:
    g = torch.Generator().manual_seed(0)
    return SpelaConv2d(1, 4, 3, 3, (3, 3), symmetric_dim=8, generator=g, **settings)


def _net(kind: str) -> SpelaSequential:
    if kind == "linear":
        return SpelaSequential(_linear(), RowNorm(), SpelaLinear(16, 8, 3))
    return SpelaSequential(_conv(), nn.Flatten(), SpelaLinear(36, 8, 3))


KINDS = {"linear": ROWS, "convolution": IMAGES}


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_has_empty_answers(kind: str) -> None:
    net, none = _net(kind).eval(), KINDS[kind][:0]
    assert net(none).shape == (0, 3)
    assert [tuple(scores.shape) for scores in net.layer_scores(none)] == [(0, 3), (0, 3)]
    for threshold in (None, 0.0, 0.5):
        assert net.predict(none, threshold).shape == (0,)
        assert net.predict(none, threshold).dtype == torch.int64
        assert [tuple(part.shape) for part in net.predict_detailed(none, threshold)] == [(0,)] * 3
    first = net[0]
    assert first.scores(first(none)).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [optim.LocalAdam, torch.optim.SGD])
def test_an_empty_batch_teaches_nothing(make: type, kind: str) -> None:
    net, none = _net(kind), KINDS[kind][:0]
    before, optimizer = copy.deepcopy(net.state_dict()), make(net.parameters(), lr=0.1)
    first = next(iter(net))
    for learner in (net, first):
        with pytest.raises(ValueError, match="no rows: a batch needs at least one sample"):
            learner.local_step(none, TARGET[:0], optimizer)
    for losses in (net.local_losses, first.local_loss):
        with pytest.raises(ValueError, match="no rows: a batch needs at least one sample"):
            losses(none, TARGET[:0])
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_empty_scores_of_the_ops() -> None:
    layer = _linear()
    y, scores = sk.linear_forward(ROWS[:0], layer.weight, layer.bias, layer.vectors)
    assert (y.shape, scores.shape) == ((0, 16), (0, 3))


LABELS = {
    "list": (
        TARGET.tolist(),
        TypeError,
        "`target` must be a tensor of int64.*got list: use torch.as",
    ),
    "array": (TARGET.numpy(), TypeError, "`target` must be a tensor of int64.*got ndarray"),
    "none": (None, TypeError, "`target` must be a tensor of int64.*got NoneType"),
    "int32": (TARGET.int(), TypeError, r"int64 class indices, got torch.int32: use .long\(\)"),
    "bool": (TARGET.bool(), TypeError, "int64 class indices, got torch.bool"),
    "float": (TARGET.float(), TypeError, "int64 class indices, got torch.float32"),
    "one-hot": (torch.eye(3)[TARGET], ValueError, r"one label per sample.*target.argmax\(dim=1\)"),
    "soft": (
        torch.full((6, 3), 1 / 3),
        ValueError,
        "one label per sample.*soft labels, and several",
    ),
    "a column": (TARGET[:, None], ValueError, r"got \(6, 1\): use target.squeeze\(1\)$"),
    "0-d": (TARGET[0], ValueError, r"one label per sample, \(6,\), got \(\)"),
    "too many": (TARGET.repeat(2), ValueError, r"one label per sample, \(6,\), got \(12,\)"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("make", [optim.LocalSGD, torch.optim.SGD])
def test_labels_of_other_kinds_are_refused_before_anything_moves(
    make: type, label: str, kind: str
) -> None:
    target, error, message = LABELS[label]
    net, x = _net(kind), KINDS[kind]
    before, optimizer = copy.deepcopy(net.state_dict()), make(net.parameters(), lr=0.1)
    for learner in (net, next(iter(net))):
        with pytest.raises(error, match=message):
            learner.local_step(x, target, optimizer)
    for losses in (net.local_losses, next(iter(net)).local_loss):
        with pytest.raises(error, match=message):
            losses(x, target)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kind_of_x", [np.asarray, Tensor.tolist])
def test_batches_that_are_no_tensors_are_refused(kind: str, kind_of_x: Any) -> None:
    net, x = _net(kind), kind_of_x(KINDS[kind])
    optimizer = optim.LocalSGD(net.parameters(), lr=0.1)
    message = rf"`x` must be a tensor, got {type(x).__name__}: use torch.as_tensor"
    for call in (
        lambda: net.local_step(x, TARGET, optimizer),
        lambda: net[0].local_step(x, TARGET, optimizer),
        lambda: net.local_losses(x, TARGET),
        lambda: net[0].local_loss(x, TARGET),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="`num_classes` must be at least 2, got 1"):
        SpelaLinear(6, 16, 1)
    with pytest.raises(ValueError, match="`num_classes` must be at least 2, got 1"):
        SpelaConv2d(1, 4, 3, 1, (3, 3), symmetric_dim=8)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["linear", "prelu", "convolution", "in a network"])
def test_the_state_of_the_layer_it_is_in_torch_loads(kind: str, bias: bool) -> None:
    if kind == "convolution":
        ours, theirs = _conv(bias=bias), nn.Conv2d(1, 4, 3, bias=bias)
    else:
        activation = "prelu" if kind == "prelu" else "relu"
        ours, theirs = _linear(bias=bias, activation=activation), nn.Linear(6, 16, bias)
    state = theirs.state_dict()
    before, loaded = copy.deepcopy(ours.state_dict()), ours
    if kind == "in a network":
        loaded, state = SpelaSequential(ours), nn.Sequential(theirs).state_dict()
    names = list(state)
    assert str(loaded.load_state_dict(state)) == "<All keys matched successfully>"
    assert list(state) == names
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict().get(name, before[name])), name
    assert torch.equal(ours.weight, theirs.weight)


def test_other_states_are_as_strict_as_ever() -> None:
    layer, state = _linear(activation="prelu"), _linear(activation="prelu").state_dict()
    for missing in ("vectors", "slope", "bias", "weight"):
        part = {name: value for name, value in state.items() if name != missing}
        with pytest.raises(RuntimeError, match=f'Missing key.*"{missing}"'):
            layer.load_state_dict(part)
    with pytest.raises(RuntimeError, match=r'Missing key.*"bias"'):
        layer.load_state_dict(nn.Linear(6, 16, bias=False).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        layer.load_state_dict(nn.Linear(5, 16).state_dict())
    with pytest.raises(RuntimeError, match=r'Missing key.*"bias"'):
        _linear().load_state_dict({})


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("objective", ["log", "softmax"])
@pytest.mark.parametrize(("dtype", "length"), [(torch.float64, 1e-13), (torch.float32, 1e20)])
def test_rows_without_direction_have_no_cosines_and_no_gradient(
    dtype: torch.dtype, length: float, objective: str, backend: str
) -> None:
    layer = _linear(bias=False, activation="identity", objective=objective, dtype=dtype)
    x = ROWS.to(dtype)
    y = (x @ layer.weight.detach().T).double()
    x = (x.double() * length / y.norm(dim=1, keepdim=True)).to(dtype)
    with sk.use_backend(backend):
        tensors = x, layer.weight.detach(), None, layer.vectors
        y, scores = sk.linear_forward(*tensors, activation="identity")
        loss, _, gradient = sk.linear_gradient(
            *tensors, TARGET, activation="identity", objective=objective
        )
    torch.testing.assert_close(y.double().norm(dim=1), torch.full((6,), length).double())
    assert not scores.any()
    assert not layer.scores(y).any()
    assert not gradient.weight.any()
    expected = np.log(2.0) if objective == "log" else np.log(3.0)
    assert abs(float(loss) - expected) < 1e-6


def test_kernels_without_direction_add_nothing() -> None:
    layer = _conv(dtype=torch.float64)
    y = torch.randn(5, 4, 3, 3, generator=G, dtype=torch.float64)
    whole = layer.scores(y)
    y[:, 1:] *= 1e-15
    alone = sk.projection_forward(
        y.flatten(2)[:, :1], layer.projection[:1], layer.vectors[:1], layer.grouping[:1]
    )
    torch.testing.assert_close(layer.scores(y), alone / 4)
    assert not torch.equal(whole, alone / 4)


def test_row_norm_of_short_and_long_rows() -> None:
    x = torch.tensor([[3e-13, 4e-13], [3e19, 4e19], [3.0, 4.0]])
    expected = torch.tensor([[0.3, 0.4], [0.0, 0.0], [0.6, 0.8]])
    torch.testing.assert_close(RowNorm("unit")(x), expected)


@pytest.mark.parametrize("make", [optim.LocalSGD, optim.LocalAdam, torch.optim.SGD])
@pytest.mark.parametrize("pool", ["max", "avg", None])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_convolution_steps_on_the_meta_device(batch_norm: bool, pool: str, make: type) -> None:
    size = (3, 3) if pool else (6, 6)
    layer = SpelaConv2d(
        1, 4, 3, 3, size, symmetric_dim=8, pool=pool, batch_norm=batch_norm, device="meta"
    )
    optimizer = make(layer.parameters(), lr=0.1)
    x = torch.empty(2, 1, 8, 8, device="meta")
    loss, y = layer.local_step(x, torch.empty(2, dtype=torch.int64, device="meta"), optimizer)
    assert (loss.shape, y.shape) == ((), (2, 4, *size))
    assert loss.is_meta
    assert y.is_meta


@pytest.mark.parametrize("kind", ["linear", "convolution", "block"])
def test_a_loss_ends_at_the_input_of_the_layer(kind: str) -> None:
    """Whoever made the input has its graph to itself: it is neither walked nor freed."""
    x, build = KINDS.get(kind, ROWS), {"linear": _linear, "convolution": _conv}.get(kind)
    layer = build() if build else SpelaBlock(nn.Linear(6, 8), 3, ROWS)
    seen: list[Tensor | None] = []
    weight = torch.ones((), requires_grad=True)
    features = (weight * x).exp()  # keeps its result for its gradient
    features.register_hook(seen.append)
    loss, y = layer.local_loss(features, TARGET)
    loss.backward()
    assert seen == []
    assert weight.grad is None
    assert not y.requires_grad
    features.sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, (x * x.exp()).sum())


def test_answers_for_samples_that_are_no_rows_are_refused() -> None:
    net, tokens = SpelaSequential(_linear(), SpelaLinear(16, 8, 3)), ROWS[:, None].expand(6, 5, 6)
    for threshold in (None, 0.1):
        with pytest.raises(
            ValueError, match=r"one label, but .* scores of shape \(6, 5, 3\): flatten"
        ):
            net.predict(tokens, threshold)
    assert torch.equal(net(tokens)[:, 2], net(ROWS))


def test_one_number_has_no_direction_to_turn() -> None:
    with pytest.raises(
        ValueError, match=r"one has no direction that could turn, got \(1, 1\): pool"
    ):
        SpelaConv2d(1, 4, 3, 3, (1, 1), symmetric_dim=8)
    for projection in (128, None):
        with pytest.raises(
            ValueError, match="one dimension no direction can turn: give it `hidden`"
        ):
            SpelaBlock(nn.Linear(6, 1), 3, ROWS, projection=projection)
    assert SpelaBlock(nn.Linear(6, 1), 3, ROWS, hidden=8).head.width == 8
    model = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.AvgPool2d(4))
    with pytest.raises(
        ValueError, match=r"Conv2d.* ends in one pixel a kernel, .*: pool less, or cut"
    ):
        convert(model, 3, IMAGES)


@pytest.mark.parametrize("activation", ["leaky_relu", "prelu"])
def test_a_slope_that_is_no_number_is_refused(activation: str) -> None:
    with pytest.raises(ValueError, match=r"`negative_slope` must be .*finite, got nan"):
        _linear(activation=activation, negative_slope=float("nan"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_batch_is_refused(kind: str) -> None:
    net, optimizer = _net(kind), optim.LocalSGD([torch.ones(1, requires_grad=True)], lr=0.1)
    for call in (
        lambda: net.local_step(torch.tensor(1.0), TARGET, optimizer),
        lambda: net.local_steps(torch.tensor(1.0), TARGET, optimizer, 2),
        lambda: net.local_losses(torch.tensor(1.0), TARGET),
    ):
        with pytest.raises(
            ValueError, match=r"`x` must be a batch \(B, ...\), got shape \(\): use"
        ):
            call()


class _Embedding(nn.Module):
    """Tokens (B, T) to vectors (B, T, 6), with a gradient of the rows in use alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6, sparse=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)


def test_sparse_gradients_reach_optimizers_that_take_them() -> None:
    tokens = torch.randint(10, (6, 7), generator=G)
    block = SpelaBlock(_Embedding(), 3, tokens)
    net = SpelaSequential(block)
    start = copy.deepcopy(net.state_dict())
    moved = []
    for make in (optim.LocalSGD, torch.optim.SGD):
        net.load_state_dict(start)
        net.local_step(tokens, TARGET, make(net.parameters(), lr=0.1))
        moved.append(copy.deepcopy(net.state_dict()))
    table = "0.body.table.weight"
    unused = sorted(set(range(10)) - set(tokens.flatten().tolist()))
    assert torch.equal(moved[0][table][unused], start[table][unused])
    assert not torch.equal(moved[0][table], start[table])
    for key, value in moved[0].items():
        torch.testing.assert_close(value, moved[1][key])
    net.load_state_dict(start)
    with pytest.raises(RuntimeError, match="Adam does not support sparse gradients"):
        net.local_step(tokens, TARGET, optim.LocalAdam(net.parameters(), lr=0.1))
    for key, value in net.state_dict().items():
        assert torch.equal(value, start[key]), key


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_computed_is_so_once_a_step(kind: str) -> None:
    calls = []

    class Counting(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            calls.append(1)
            return 2 * weight

    layer = _linear() if kind == "linear" else _conv()
    nn.utils.parametrize.register_parametrization(layer, "weight", Counting())
    optimizer = optim.LocalAdam(layer.parameters(), lr=0.1)
    calls.clear()
    layer.local_step(KINDS[kind], TARGET, optimizer)
    assert len(calls) == 1
    layer.local_loss(KINDS[kind], TARGET)
    assert len(calls) == 2
