"""The Dataset itself: what it refuses, moves and shrinks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spela.data import Dataset, load_dataset
from tests.devices import DEVICES


def _make(**changes: object) -> Dataset:
    fields: dict = {
        "name": "toy",
        "train_x": torch.rand(6, 3),
        "train_y": torch.tensor([0, 1, 2, 0, 1, 2]),
        "test_x": torch.rand(3, 3),
        "test_y": torch.tensor([2, 1, 0]),
        "num_classes": 3,
        "class_names": ("a", "b", "c"),
        "source": "toy.npz",
    }
    return Dataset(**{**fields, **changes})


def _with(value: float) -> torch.Tensor:
    x = torch.rand(6, 3)
    x[4, 1] = value
    return x


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_x": _with(float("nan"))}, "train_x has 1 values that are NaN.* sample 4"),
        ({"train_x": _with(float("-inf"))}, "train_x has 1 values that are NaN.* sample 4"),
        ({"train_y": torch.tensor([0, 1, 2, 0, 3, 2])}, r"in 0\.\.2, .* but that of sample 4 is 3"),
        ({"test_y": torch.tensor([0, -1, 2])}, "test_y.*that of sample 1 is -1"),
        ({"test_y": torch.tensor([0, 1])}, "3 samples but test_y has 2"),
        ({"train_y": torch.rand(6)}, "int64 class indices"),
        ({"train_x": torch.rand(6, 3, dtype=torch.float64)}, "float32"),
        ({"train_x": torch.rand(6)}, "at least one sample"),
        ({"train_x": torch.rand(0, 3), "train_y": torch.zeros(0).long()}, "at least one sample"),
        ({"test_x": torch.rand(3, 4)}, r"samples are \(3,\).*\(4,\)"),
        ({"num_classes": 1, "class_names": ("a",)}, "at least 2"),
        ({"class_names": ("a", "b")}, "3 entries, got 2"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_dataset_checks_itself(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        _make(**changes)
    assert str(caught.value).startswith("dataset 'toy' (toy.npz): ")


def test_dataset_refuses_what_is_no_tensor():
    with pytest.raises(TypeError, match="train_x and train_y must be tensors"):
        _make(train_x=np.zeros((6, 3)))


def test_dataset_moves_and_shrinks():
    data = _make()
    moved = data.to("cpu")
    assert torch.equal(moved.train_x, data.train_x)
    assert torch.equal(moved.test_y, data.test_y)
    small = data.subset(train=3, test=1)
    assert torch.equal(small.train_x, data.train_x[[0, 2, 4]])
    assert small.train_y.tolist() == [0, 2, 1]
    assert small.test_y.tolist() == [2]
    assert small.num_classes == 3
    with pytest.raises(ValueError, match="train must be between 1 and 6, got 7"):
        data.subset(train=7)


@pytest.mark.parametrize("device", DEVICES)
def test_dataset_on_a_device(device):
    data = load_dataset("digits").to(device)
    assert data.train_x.device.type == device
    assert data.test_y.device.type == device
    assert torch.equal(
        data.subset(train=9).train_y.cpu(), load_dataset("digits").subset(train=9).train_y
    )


@pytest.mark.parametrize("factor", [1e25, 1e-25])
def test_values_whose_squares_float32_does_not_hold_are_refused(factor: float) -> None:
    x, y = factor * torch.eye(4), torch.tensor([0, 1, 0, 1])
    with pytest.raises(ValueError, match="divide every feature by its standard deviation"):
        Dataset("far", x, y, x, y, num_classes=2, class_names=("a", "b"))
    zeros = torch.zeros(4, 4)
    Dataset("nothing", zeros, y, zeros, y, num_classes=2, class_names=("a", "b"))


def test_a_digest_is_of_what_is_learnt_and_not_of_where_it_lies() -> None:
    x, y = torch.eye(4), torch.tensor([0, 1, 0, 1])
    data = Dataset("eye", x, y, x, y, num_classes=2, class_names=("a", "b"))
    alike = Dataset("other", x.clone(), y, x.T.contiguous(), y, 2, ("a", "b"), source="there")
    assert data.digest == alike.digest
    for other in (
        Dataset("eye", -x, y, x, y, 2, ("a", "b")),
        Dataset("eye", x, 1 - y, x, y, 2, ("a", "b")),
        Dataset("eye", x, y, x, y, 2, ("b", "a")),
        Dataset("eye", x.view(4, 1, 2, 2), y, x.view(4, 1, 2, 2), y, 2, ("a", "b")),
    ):
        assert other.digest != data.digest


def test_labels_go_with_the_names_of_their_classes() -> None:
    x, y = torch.eye(4), torch.tensor([0, 1, 2, 3])
    data = Dataset("eye", x, y, x, y.flip(0), 4, tuple("abcd"))
    mixed = data.with_classes(tuple("bdac"))
    names = [mixed.class_names[label] for label in mixed.test_y.tolist()]
    assert names == list("dcba")
    assert [mixed.class_names[label] for label in mixed.train_y.tolist()] == list("abcd")
    assert torch.equal(mixed.with_classes(data.class_names).train_y, y)
    numbered = Dataset("eye", x, y, x, y, 4, tuple("0123"))
    assert numbered.with_classes(data.class_names) is numbered
    for others in ("wxyz", "abc", "abcx"):
        with pytest.raises(ValueError, match="take data of the same classes"):
            data.with_classes(tuple(others))


def test_data_may_lack_a_class_of_the_network_s() -> None:
    x, y = torch.eye(3), torch.tensor([0, 1, 2])
    few = Dataset("few", x, y, x, y.flip(0), 3, tuple("dca")).with_classes(tuple("abcd"))
    assert (few.num_classes, few.class_names) == (4, tuple("abcd"))
    assert [few.train_y.tolist(), few.test_y.tolist()] == [[3, 2, 0], [0, 2, 3]]
    message = (
        r"numbers has 3 classes \(0, 1, 2\), expected are 4 classes \(a, b, c, ...\): take data"
    )
    with pytest.raises(ValueError, match=message):
        Dataset("numbers", x, y, x, y, 3, tuple("012")).with_classes(tuple("abcd"))


def test_numbers_as_text_are_put_in_the_order_of_numbers() -> None:
    """A file of labels as text sorts them as text: 0, 1, 10, 11, 2, ..."""
    x, y = torch.eye(12), torch.arange(12)
    by_text = tuple(sorted(map(str, range(12))))
    by_value = tuple(map(str, range(12)))
    data = Dataset("numbers", x, y, x, y, 12, by_value)
    mixed = data.with_classes(by_text)
    assert mixed.class_names == by_text
    assert [by_text[label] for label in mixed.train_y] == list(by_value)
    assert torch.equal(mixed.with_classes(by_value).test_y, y)
