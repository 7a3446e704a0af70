"""The replay buffer: bounded, fair to the stream or to its classes, and the same after a reload."""

from __future__ import annotations

import pytest
import torch

from spela.streaming import ReplayBuffer


def _stream(labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(len(labels), dtype=torch.float32)[:, None], torch.tensor(labels)


@pytest.mark.parametrize(("policy", "capacity"), [("reservoir", 10), ("balanced", 3)])
def test_each_sample_of_one_class_is_kept_with_the_same_probability(
    policy: str, capacity: int
) -> None:
    count = 4 * capacity
    x, y = _stream([0] * count)
    kept = torch.zeros(count)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        buffer = ReplayBuffer(capacity, policy, generator=generator)
        buffer.add(x, y)
        kept[buffer.x[:, 0].long()] += 1
    # 2000 draws with p = 1/4: mean 500, standard deviation 19.4.
    assert (kept - 500).abs().max() < 5 * 19.4


def test_balanced_keeps_rare_classes_and_a_uniform_sample_of_large_ones() -> None:
    labels = [0] * 300 + [1] * 3 + [0] * 300 + [2] * 100
    x, y = _stream(labels)
    buffer, reservoir = ReplayBuffer(30), ReplayBuffer(30, "reservoir")
    for part in (slice(0, 310), slice(310, 703)):  # in pieces: the order is all that matters
        buffer.add(x[part], y[part])
        reservoir.add(x[part], y[part])
    counts = buffer.y.bincount(minlength=3).tolist()
    assert sum(counts) == len(buffer) == 30
    assert counts[1] == 3
    assert counts[0] in (13, 14)
    assert torch.equal(y[buffer.x[:, 0].long()], buffer.y)
    assert (buffer.x[buffer.y == 0, 0] > 303).any()  # not only the first ones
    assert reservoir.y.bincount(minlength=3)[0] > 20


def test_a_sample_is_drawn_once_and_comes_as_it_was() -> None:
    buffer = ReplayBuffer(200)
    x = torch.arange(150, dtype=torch.uint8).reshape(150, 1, 1).repeat(1, 2, 3)
    buffer.add(x, torch.arange(150) % 4)
    drawn, labels = buffer.sample(100)
    assert drawn.dtype == torch.uint8
    rows = drawn[:, 0, 0].long()
    assert len(rows.unique()) == 100
    assert torch.equal(drawn, x[rows])
    assert torch.equal(labels, rows % 4)
    assert len(buffer.sample(999)[1]) == 150
    drawn.zero_()
    assert buffer.x.any()
    with pytest.raises(ValueError, match=r"samples of shape \(2, 3\) torch.float32"):
        buffer.add(torch.zeros(1, 2, 3), torch.tensor([0]))


def test_goes_on_as_before_after_a_reload() -> None:
    x, y = _stream([i % 7 for i in range(400)])
    first = ReplayBuffer(50)
    first.add(x[:200], y[:200])
    second = ReplayBuffer(50)
    second.load_state(first.state(), torch.device("cpu"))
    second.generator.set_state(first.generator.get_state())
    for buffer in (first, second):
        buffer.add(x[200:], y[200:])
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.sample(9)[0], second.sample(9)[0])


def test_nothing_is_kept_without_room_and_a_large_capacity_takes_none() -> None:
    buffer = ReplayBuffer(0)
    buffer.add(*_stream([0, 1]))
    assert len(buffer) == 0
    assert len(buffer.sample(3)[1]) == 0
    huge = ReplayBuffer(10**15)
    huge.add(*_stream([0, 1, 1]))
    assert huge.y.tolist() == [0, 1, 1]


def test_values_are_kept_without_their_graph() -> None:
    buffer = ReplayBuffer(3)
    x, y = _stream([0, 1])
    buffer.add(x.clone().requires_grad_(), y)
    assert not buffer.x.requires_grad
    assert torch.equal(buffer.x, x)


@pytest.mark.parametrize("labels", [[0, -1], [0], [0.0, 1.0]])
def test_labels_that_are_none_are_refused_before_a_sample_is_kept(labels: list) -> None:
    buffer = ReplayBuffer(3)
    x, _ = _stream([0, 1])
    with pytest.raises(ValueError, match="2 int64 class indices, 0 or more"):
        buffer.add(x, torch.tensor(labels))
    assert (len(buffer), buffer.seen) == (0, [])


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="capacity"):
        ReplayBuffer(-1)
    with pytest.raises(ValueError, match="use one of balanced, reservoir"):
        ReplayBuffer(3, "newest")
    full = ReplayBuffer(50)
    full.add(*_stream([0, 1] * 10))
    for change in (
        {"y": full.y[:3]},
        {"y": full.y + 9},
        {"y": full.y - 1},
        {"seen": torch.tensor([1, 10])},
        {"was_largest": torch.tensor([True])},
    ):
        with pytest.raises(ValueError, match="do not fit each other"):
            ReplayBuffer(50).load_state({**full.state(), **change}, torch.device("cpu"))
    with pytest.raises(ValueError, match="do not fit each other"):
        ReplayBuffer(5).load_state(full.state(), torch.device("cpu"))


def test_an_empty_buffer_is_loaded_into_one_that_was_used() -> None:
    x, y = _stream([0, 1])
    buffer = ReplayBuffer(3)
    buffer.add(x, y)
    buffer.load_state(ReplayBuffer(3).state(), torch.device("cpu"))
    assert len(buffer) == 0
    buffer.add(torch.ones(2, 5), torch.tensor([0, 1]))  # of another shape than before
    assert buffer.x.shape == (2, 5)
