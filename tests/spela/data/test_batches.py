"""Mini-batches: every sample once, the same order from the same generator, exact conversion."""

from __future__ import annotations

import pytest
import torch

from spela.data import Batches, prepare
from spela.data.batches import epoch_generator
from tests.devices import DEVICES


def _data(count: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    x = (torch.arange(count)[:, None] + torch.tensor([0, 100])).to(torch.uint8)
    return x, torch.arange(count)


@pytest.mark.parametrize("shuffle", [False, True], ids=["in-order", "shuffled"])
@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [(10, 4, [4, 4, 2]), (10, 5, [5, 5]), (10, 1, [1] * 10), (10, 10, [10]), (3, 50, [3])],
    ids=str,
)
def test_sizes_and_every_sample_once(shuffle, count, size, lengths):
    x, y = _data(count)
    batches = Batches(x, y, size, shuffle=shuffle, generator=epoch_generator(0, 0))
    seen = list(batches)
    assert [len(labels) for _, labels in seen] == lengths
    assert len(batches) == len(lengths)
    labels = torch.cat([labels for _, labels in seen])
    assert len(labels.unique()) == sum(lengths)
    for inputs, target in seen:
        assert inputs.dtype == torch.float32
        assert torch.equal(inputs, x[target].float() / 255)
    if not shuffle:
        assert labels.tolist() == list(range(sum(lengths)))


def _order(seed: int, epoch: int) -> list[int]:
    x, y = _data(50)
    batches = Batches(x, y, 7, shuffle=True, generator=epoch_generator(seed, epoch))
    return torch.cat([labels for _, labels in batches]).tolist()


def test_an_epoch_depends_on_seed_and_epoch_alone():
    assert _order(0, 3) == _order(0, 3)
    orders = [_order(seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]]
    assert len({tuple(order) for order in orders}) == 5
    assert all(order != sorted(order) for order in orders)


def test_the_order_is_that_of_the_generator_and_new_in_every_iteration():
    x, y = _data(50)
    generator = torch.Generator().manual_seed(5)
    batches = Batches(x, y, 50, shuffle=True, generator=generator)
    first, second = (next(iter(batches))[1] for _ in range(2))
    same = torch.Generator().manual_seed(5)
    assert torch.equal(first, torch.randperm(50, generator=same))
    assert torch.equal(second, torch.randperm(50, generator=same))
    state = torch.get_rng_state()
    list(batches)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not touched"


def test_float_batches_in_order_are_views():
    x, y = torch.rand(6, 3), torch.arange(6)
    inputs, labels = next(iter(Batches(x, y, 4, shuffle=False)))
    assert inputs.data_ptr() == x.data_ptr()
    assert labels.data_ptr() == y.data_ptr()


def test_strided_samples():
    x = torch.arange(48, dtype=torch.uint8).reshape(2, 4, 6).permute(1, 2, 0)
    y = torch.arange(4)
    for inputs, labels in Batches(x, y, 3, shuffle=True, generator=epoch_generator(1, 1)):
        assert torch.equal(inputs * 255, x[labels].float())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": torch.arange(9)}, "same number of samples"),
        ({"y": torch.zeros(10, 1)}, r"y of shape \(N,\)"),
        ({"x": torch.zeros(0, 2), "y": torch.zeros(0)}, "at least one"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"shuffle": True}, "needs a generator"),
        ({"y": torch.zeros(10, device="meta")}, "one device"),
    ],
    ids=["lengths", "y-axes", "empty", "size-0", "no-generator", "devices"],
)
def test_wrong_arguments(arguments, message):
    x, y = _data()
    with pytest.raises(ValueError, match=message):
        Batches(**{"x": x, "y": y, "batch_size": 4, "shuffle": False, **arguments})


def test_lists_are_refused():
    with pytest.raises(TypeError, match="must be tensors, got list"):
        Batches([[1.0]], torch.arange(1), 1, shuffle=False)


def test_prepare():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(prepare(pixels), torch.arange(256.0) / 255)
    assert pixels.tolist() == list(range(256))
    features = torch.tensor([-3.5, 300.0])
    assert prepare(features) is features
    assert prepare(features.double()).dtype == torch.float32
    assert torch.equal(prepare(features.half()), features)
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        prepare(torch.arange(3))


@pytest.mark.parametrize("device", DEVICES)
def test_a_cpu_generator_gives_the_same_order_on_every_device(device):
    x, y = _data(50)
    generator = epoch_generator(0, 3)
    batches = Batches(x.to(device), y.to(device), 7, shuffle=True, generator=generator)
    seen = list(batches)
    assert all(inputs.device.type == labels.device.type == device for inputs, labels in seen)
    assert torch.cat([labels for _, labels in seen]).tolist() == _order(0, 3)
    for inputs, labels in seen:
        assert torch.equal(inputs.cpu(), prepare(x[labels.cpu()]))


def test_every_stream_of_an_epoch_has_draws_of_its_own() -> None:
    seeds = {epoch_generator(0, 3, *stream).initial_seed() for stream in ((), (1,), (2,))}
    assert len(seeds) == 3


def test_shuffling_that_is_asked_for_later_needs_a_generator_too() -> None:
    batches = Batches(torch.ones(3, 2), torch.arange(3), 2, shuffle=False)
    batches.shuffle = True
    with pytest.raises(ValueError, match="shuffle=True needs a generator"):
        iter(batches)
