"""Heads of blocks that learn from a stream, over bodies that stay; classes beside the trained ones."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from spela import Frozen, RowNorm, SpelaBlock, SpelaLinear, SpelaSequential, convert, optim
from spela.baselines import LinearHeadBlock
from spela.data import Dataset, load_dataset
from spela.streaming import StreamingClassifier
from spela.vectors import further_vectors, symmetric_vectors


def _body(width: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
    )


def _net(num_classes: int = 5, hidden: int = 6, **settings: float) -> SpelaSequential:
    torch.manual_seed(0)
    return convert(_body(), num_classes, X, blocks=2, hidden=hidden, projection=16, **settings)


X = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = [row % 3 for row in range(24)]


def test_heads_learn_by_value_and_bodies_stay_in_every_bit() -> None:
    net = _net()
    expected = copy.deepcopy(net)
    stream = StreamingClassifier(net, optim.LocalSGD(net.parameters(), lr=0.5), memory=0)
    stream.freeze_bodies()
    losses = stream.observe(X, Y)
    x, target = X, torch.tensor(Y)
    for block, loss, ours in zip(expected, losses, net, strict=True):
        with torch.no_grad():
            x = block.body.eval()(x)
        rows = (
            nn.functional.adaptive_avg_pool2d(x, block.head.pooled).flatten(1)
            @ block.head.hidden.weight.T
        )
        norm = block.head.hidden.norm
        made = nn.functional.batch_norm(rows, None, None, norm.weight, norm.bias, training=True)
        made = nn.functional.leaky_relu(made, 0.01) @ block.projection[0]
        cosines = nn.functional.cosine_similarity(made[:, None], block.vectors[:3], dim=2)
        by_hand = nn.functional.cross_entropy(block.scale * cosines, target)
        assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
        head = [block.head.hidden.weight, norm.weight, norm.bias, block.projection]
        gradients = torch.autograd.grad(by_hand, head)
        assert all(gradient.abs().max() > 0 for gradient in gradients)
        mine = [
            ours.head.hidden.weight,
            ours.head.hidden.norm.weight,
            ours.head.hidden.norm.bias,
            ours.projection,
        ]
        for parameter, gradient, learnt in zip(head, gradients, mine, strict=True):
            torch.testing.assert_close(learnt.detach(), (parameter - 0.5 * gradient).detach())
        kept, before = ours.body.state_dict(), block.body.state_dict()
        assert all(torch.equal(value, before[name]) for name, value in kept.items())
        assert ours.head.hidden.norm.num_batches_tracked == 1
    stream.freeze_bodies(False)
    stream.observe(X, Y)
    for ours, block in zip(net, expected, strict=True):
        before = block.body.state_dict()
        assert not any(
            torch.equal(value, before[name]) for name, value in ours.body.state_dict().items()
        )


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def test_a_trained_network_learns_further_digits_in_its_heads(digits: Dataset) -> None:
    torch.manual_seed(0)
    x, y, test_x, test_y = digits.train_x, digits.train_y, digits.test_x, digits.test_y
    old, old_test = y < 5, test_y < 5
    net = convert(_body(16), 5, x[:8], blocks=2, hidden=32, projection=32)
    optimizer = optim.LocalAdam(net.parameters(), lr=3e-3)
    for _ in range(5):
        for part in zip(x[old].split(50), y[old].split(50), strict=True):
            net.local_step(*part, optimizer)
    answers = net.eval().layer_scores(test_x[old_test])
    stream = StreamingClassifier(net, labels=range(5), max_classes=10, memory=300)
    stream.freeze_bodies()
    # Before it learns, a trained network answers as ever.
    for ours, before in zip(net.layer_scores(test_x[old_test]), answers, strict=True):
        assert torch.equal(ours, before)

    def accuracy(rows: torch.Tensor) -> float:
        named = torch.tensor(stream.predict(test_x[rows]).labels)
        return (named == test_y[rows]).double().mean().item()

    assert accuracy(old_test) > 0.97
    stream.observe(x[old][:200], y[old][:200])
    for part in zip(x[~old].split(10), y[~old].split(10), strict=True):
        stream.observe(*part)
    assert sorted(stream.labels) == list(range(10))
    assert accuracy(old_test) > 0.88
    assert accuracy(~old_test) > 0.88


def test_a_grown_stream_goes_on_from_its_file_in_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "stream.safetensors"
    whole = StreamingClassifier(_net(), labels="abc", max_classes=7, memory=10, seed=3)
    whole.freeze_bodies()
    whole.observe(X, [f"new {label}" for label in Y])
    whole.save(path)
    taken = StreamingClassifier.load(path, _net())
    assert taken.labels == ["a", "b", "c", "new 0", "new 1", "new 2"]
    assert [p.requires_grad for p in taken.net.parameters()] == [
        p.requires_grad for p in whole.net.parameters()
    ]
    for stream in (whole, taken):
        for _ in range(3):
            stream.observe(X, [f"new {label}" for label in Y])
        stream.observe(X[0], "the seventh")
        with pytest.raises(ValueError, match="one class too many"):
            stream.observe(X[0], "the eighth")
        stream.save(tmp_path / f"{stream is whole}.safetensors")
    first, second = (load_file(tmp_path / f"{which}.safetensors") for which in (True, False))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    # Another network is as it was.
    other = SpelaSequential(*(SpelaLinear(64, 16, 5) for _ in range(2)))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match="fit"):
        StreamingClassifier.load(path, other)
    assert [layer.num_classes for layer in other.local_layers] == [5, 5]
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("hidden", [0, 6])
def test_the_first_sample_of_a_stream_is_one_class(hidden: int) -> None:
    stream = StreamingClassifier(_net(hidden=hidden))
    stream.freeze_bodies()
    before = [block.projection.clone() for block in stream.net]
    assert stream.observe(X[0], "one").tolist() == [0, 0]  # nothing to tell it from
    assert all(torch.equal(b.projection, p) for b, p in zip(stream.net, before, strict=True))
    assert (stream.observe(X[1], "two") > 0).all()
    assert set(stream.predict(X).labels) <= {"one", "two"}
    assert stream.predict(X).margin.shape == (24,)


def test_a_part_that_is_frozen_keeps_its_statistics() -> None:
    net = _net()
    first = net.local_layers[0].body
    for module in first.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    StreamingClassifier(net).observe(X, Y)
    for name, module in first.named_modules():
        for key, value in module.named_parameters(prefix=name, recurse=False):
            assert torch.equal(value, before[key]) == isinstance(module, nn.BatchNorm2d)
        for key, value in module.named_buffers(prefix=name, recurse=False):
            assert torch.equal(value, before[key])
    assert any(isinstance(module, nn.BatchNorm2d) for module in first.modules())


def test_further_vectors_are_at_right_angles_and_symmetric() -> None:
    net = SpelaSequential(SpelaLinear(3, 12, 5))
    old = net[0].vectors.clone()
    stream = StreamingClassifier(net, labels=range(5), max_classes=9)
    stream.classes.indices(range(9))
    assert torch.equal(net[0].vectors[:5], old)
    cosines = (net[0].vectors @ net[0].vectors.T).double()
    assert torch.allclose(cosines[5:, :5], torch.zeros(4, 5).double(), atol=1e-6)
    simplex = torch.full((4, 4), -1 / 3).double().fill_diagonal_(1)
    assert torch.allclose(cosines[5:, 5:], simplex, atol=1e-6)
    # A simplex of 5 fills 4 dimensions of 5: one is free, with two directions.
    tight = symmetric_vectors(5, 5, dtype=torch.float32)
    assert torch.allclose(further_vectors(tight, 2).sum(dim=0), torch.zeros(5), atol=1e-6)
    with pytest.raises(ValueError, match="have no room for 3 classes more than 5"):
        further_vectors(tight, 3)


@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(torch.bfloat16, 4e-3), (torch.float16, 5e-4), (torch.float32, 1e-6), (torch.float64, 1e-7)],
)
@pytest.mark.parametrize("dim", [64, 1024])
def test_further_vectors_of_any_precision(dtype: torch.dtype, rounding: float, dim: int) -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        old = symmetric_vectors(5, dim, generator=generator).to(dtype)
        new = further_vectors(old, 3, generator=generator)
        assert new.dtype == dtype
        assert float((old.double() @ new.double().T).abs().max()) < rounding


def test_what_was_drawn_in_float32_leaves_its_room_in_float64() -> None:
    old = symmetric_vectors(5, 5, dtype=torch.float32).double()
    assert float((old @ further_vectors(old, 1).T).abs().max()) < 1e-6
    with pytest.raises(ValueError, match="no room for 3 classes"):
        further_vectors(old, 3)


def test_what_cannot_be_streamed_is_said_and_changes_nothing() -> None:
    full = SpelaSequential(SpelaLinear(3, 4, 5))
    with pytest.raises(ValueError, match="no room for 1 classes more than 5"):
        StreamingClassifier(full, max_classes=6)
    with pytest.raises(ValueError, match="max_classes"):
        StreamingClassifier(full, max_classes=4)
    assert full[0].num_classes == 5
    assert len(full[0].vectors) == 5
    linear = StreamingClassifier(SpelaSequential(RowNorm(), SpelaLinear(3, 8, 5)))
    with pytest.raises(ValueError, match="no SpelaBlock"):
        linear.freeze_bodies()
    bare = SpelaSequential(SpelaBlock(_body(), 5, X, projection=None))
    stream = StreamingClassifier(bare)
    with pytest.raises(ValueError, match="nothing to learn"):
        stream.freeze_bodies()
    assert all(parameter.requires_grad for parameter in bare.parameters())
    rival = SpelaSequential(LinearHeadBlock(_body(), 5, X))
    with pytest.raises(TypeError, match="LinearHeadBlock cannot take classes at run time"):
        StreamingClassifier(rival)


@pytest.mark.parametrize("what", ["freeze", "freeze_bodies"])
def test_a_frozen_backbone_inside_sleeps_on_where_its_layer_learns_again(what: str) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(Frozen(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 8))
    net = SpelaSequential(SpelaBlock(body, 5, torch.randn(2, 4), projection=8))
    stream = StreamingClassifier(net)
    kept, learns = body[0].module.weight.clone(), body[2].weight.clone()
    for frozen in (True, False):
        if what == "freeze":
            stream.freeze(0, frozen)
        else:
            stream.freeze_bodies(frozen)
        assert body[2].weight.requires_grad is not frozen
    for _ in range(3):
        stream.observe(torch.randn(6, 4), [0, 1, 2, 0, 1, 2])
    assert torch.equal(body[0].module.weight, kept)
    assert not torch.equal(body[2].weight, learns)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def test_a_weight_with_two_names_is_saved_and_stays_one(tmp_path: Path) -> None:
    def built() -> StreamingClassifier:
        return StreamingClassifier(SpelaSequential(SpelaBlock(_Tied(), 4, torch.randn(2, 6))))

    x, labels = torch.randn(3, 6), ["a", "b", "a"]
    stream = built()
    stream.observe(x, labels)
    stream.save(tmp_path / "tied.safetensors")
    other = StreamingClassifier.load(tmp_path / "tied.safetensors", built().net)
    body = other.net[0].body
    assert body.second.weight is body.first.weight
    assert torch.equal(body.first.weight, stream.net[0].body.first.weight)
    for one in (stream, other):
        one.observe(x, labels)
    assert torch.equal(body.first.weight, stream.net[0].body.first.weight)
