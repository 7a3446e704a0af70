"""A user's own .npz file or idx folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spela.data import load_dataset

RNG = np.random.default_rng(3)
TRAIN_X = RNG.random((6, 4))
TRAIN_Y = np.array([0, 1, 2, 0, 1, 2], np.uint8)
TEST_X = RNG.random((3, 4))
TEST_Y = np.array([2, 1, 0])


def _save(path, names=("train_x", "train_y", "test_x", "test_y"), **changes):
    arrays = dict(zip(names, (TRAIN_X, TRAIN_Y, TEST_X, TEST_Y), strict=True))
    np.savez(path, **{**arrays, **changes})
    return path


@pytest.mark.parametrize(
    "names",
    [
        ("train_x", "train_y", "test_x", "test_y"),
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
    ],
    ids=["ours", "keras", "medmnist"],
)
def test_npz_values(tmp_path, names):
    data = load_dataset(_save(tmp_path / "own.npz", names))
    assert data.name == "own"
    assert data.class_names == ("0", "1", "2")
    assert data.train_x.dtype == torch.float32
    np.testing.assert_array_equal(data.train_x.numpy(), TRAIN_X.astype(np.float32))
    np.testing.assert_array_equal(data.train_y.numpy(), TRAIN_Y)
    np.testing.assert_array_equal(data.test_x.numpy(), TEST_X.astype(np.float32))
    np.testing.assert_array_equal(data.test_y.numpy(), TEST_Y)


@pytest.mark.parametrize("dtype", [">f4", ">f8", "f2", np.longdouble])
@pytest.mark.parametrize("order", ["C", "F"])
def test_floats_of_any_kind_by_value(tmp_path, dtype, order):
    x = np.arange(-9, 15).reshape(6, 4).astype(dtype, order=order) / 4
    path = _save(tmp_path / "kinds.npz", train_x=x, test_x=x[:3], train_y=TRAIN_Y.astype(">u2"))
    data = load_dataset(path)
    assert data.train_x.dtype == torch.float32
    assert data.train_x.tolist() == [[(4 * i + j - 9) / 4 for j in range(4)] for i in range(6)]
    assert data.train_y.tolist() == TRAIN_Y.tolist()


def test_deep_pixels_are_not_sent_to_8_bits(tmp_path):
    path = _save(tmp_path / "deep.npz", train_x=np.full((6, 4), 65535, np.uint16))
    with pytest.raises(
        ValueError, match=r"got uint16; .*deeper pixels divided by their full scale"
    ):
        load_dataset(path)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((6, 10), (10,)),
        ((6, 5, 7), (1, 5, 7)),
        ((6, 5, 7, 3), (3, 5, 7)),
        ((6, 5, 7, 1), (1, 5, 7)),
        ((6, 3, 5, 7), (3, 5, 7)),
        ((6, 2, 5, 7), (2, 5, 7)),
        ((6, 3, 5, 3), (3, 5, 3)),
    ],
    ids=str,
)
def test_image_layouts(tmp_path, shape, wanted):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = _save(tmp_path / "images.npz", train_x=images, test_x=images[:3])
    data = load_dataset(path)
    assert data.train_x.dtype == torch.uint8
    assert data.sample_shape == wanted
    moved = images.transpose(0, 3, 1, 2) if shape[1:] in ((5, 7, 3), (5, 7, 1)) else images
    np.testing.assert_array_equal(data.train_x.numpy(), moved.reshape(6, *wanted))


@pytest.mark.parametrize(
    ("shape", "warned"),
    [
        ((7, 7, 2), True),
        ((7, 7, 5), True),
        ((7, 7, 3), False),
        ((7, 7, 7), False),
        ((3, 8, 2), False),
    ],
)
def test_a_last_axis_that_may_be_channels_is_said(tmp_path, caplog, shape, warned):
    images = np.zeros((6, *shape), np.uint8)
    load_dataset(_save(tmp_path / "images.npz", train_x=images, test_x=images[:3]))
    assert ("if the channels are the last axis" in caplog.text) == warned


def test_x_and_y_are_split_by_class_and_seed(tmp_path):
    x = np.arange(100, dtype=np.float32)[:, None]
    y = np.repeat([0, 1, 2, 3], 25)
    path = tmp_path / "whole.npz"
    np.savez(path, x=x, y=y)
    first, again = load_dataset(path), load_dataset(path)
    other = load_dataset(path, split_seed=1)
    assert torch.bincount(first.test_y).tolist() == [5, 5, 5, 5]
    assert torch.equal(first.test_x, again.test_x)
    assert not torch.equal(first.test_x, other.test_x)
    together = torch.cat([first.train_x, first.test_x]).flatten().sort().values
    assert torch.equal(together, torch.arange(100.0))
    assert torch.equal(first.train_y, first.train_x.flatten().long() // 25)


def test_class_names_allow_a_class_without_samples(tmp_path):
    names = np.array(["ant", "bee", "cow", "dog"])
    data = load_dataset(_save(tmp_path / "named.npz", class_names=names))
    assert data.num_classes == 4
    assert data.class_names == ("ant", "bee", "cow", "dog")


@pytest.mark.parametrize("named", [False, True], ids=["by alphabet", "as named"])
def test_labels_may_be_class_names(named: bool, tmp_path):
    words = np.array(["ox", "ant", "bee"])
    more = {"class_names": np.array(["bee", "ox", "ant", "cow"])} if named else {}
    y = {"train_y": words[TRAIN_Y], "test_y": words[[2, 1, 0]]}
    data = load_dataset(_save(tmp_path / "words.npz", **y, **more))
    assert data.class_names == (("bee", "ox", "ant", "cow") if named else ("ant", "bee", "ox"))
    assert [data.class_names[k] for k in data.train_y] == [*words[TRAIN_Y]]
    assert [data.class_names[k] for k in data.test_y] == ["bee", "ant", "ox"]
    np.savez(tmp_path / "both.npz", x=np.eye(30), y=words[np.arange(30) % 3][:, None], **more)
    both = load_dataset(tmp_path / "both.npz")
    rows, labels = torch.cat([both.train_x, both.test_x]), torch.cat([both.train_y, both.test_y])
    for row, label in zip(rows, labels, strict=True):
        assert both.class_names[label] == words[int(row.argmax()) % 3]


def test_a_file_of_x_and_y_is_judged_by_its_own_rows_and_classes(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 4
    x[17, 1] = np.nan
    np.savez(tmp_path / "nan.npz", x=x, y=y)
    with pytest.raises(ValueError, match=r"nan\.npz: x has 1 values .* the first in sample 17"):
        load_dataset(tmp_path / "nan.npz")
    # One sample of a class, which only one of the parts can have.
    np.savez(tmp_path / "single.npz", x=np.ones((11, 3)), y=np.array(["rare"] + ["seen"] * 10))
    with pytest.raises(ValueError, match=r"class rare has one sample, which became a test sample"):
        load_dataset(tmp_path / "single.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_y": np.array(["0", "1", "2"])}, "test_y must be integer class indices"),
        (
            {"train_y": np.array(list("abcabc"))},
            "test_y must be class names, as the other labels are",
        ),
        (
            {"train_y": np.array(list("abcabc")), "test_y": np.array(list("abd"))},
            "test_y holds 'd', which is no class: the classes are a, b, c",
        ),
        (
            {"train_y": np.array(list("abcabc")), "class_names": np.array(["a", "b"])},
            "train_y holds 'c', which is no class: the classes are a, b",
        ),
        ({"train_x": np.full((6, 4), np.nan)}, "24 values that are NaN"),
        ({"test_x": np.full((3, 4), 1e300)}, "12 values that are NaN, Inf or beyond float32"),
        ({"train_x": np.zeros((6, 4), np.int64)}, "train_x must be uint8 .*got int64"),
        ({"train_x": np.zeros((6, 4), bool)}, "got bool"),
        ({"train_x": np.zeros(6)}, r"got shape \(6,\)"),
        ({"train_x": np.array([{}] * 6)}, "array of Python objects"),
        ({"train_x": np.zeros((5, 4))}, "5 samples but train_y has 6"),
        ({"test_x": np.zeros((3, 5))}, r"test_x samples are \(5,\)"),
        ({"train_y": TRAIN_Y.astype(float)}, r"got float64; convert with .astype\('int64'\)"),
        ({"train_y": np.eye(3, dtype=int)[TRAIN_Y]}, r"class indices of shape \(N,\)"),
        ({"train_y": TRAIN_Y + 1}, "class 0 has no training sample"),
        ({"train_y": np.array([0, 1, 2, 0, 1, 2**40])}, "class 3 has no training sample"),
        ({"train_y": np.array([0, 1, 2, 0, 1, -1])}, "found -1"),
        (
            {"train_y": np.zeros(6, int)},
            "train_y holds only class 0; a classifier needs at least 2",
        ),
        ({"train_y": np.full(6, 3)}, "train_y holds only class 3; a classifier needs at least 2"),
        (
            {"train_y": np.full(6, "cat"), "test_y": np.full(3, "cat")},
            "num_classes is 1, cat; a classifier needs at least 2 classes",
        ),
        (
            {"test_y": np.array([0, 1, 3])},
            r"test_y must be in 0\.\.2, .* but that of sample 2 is 3",
        ),
        ({"class_names": np.array([1, 2, 3])}, "class_names must be a text array"),
        ({"class_names": np.array(["a", "b"])}, r"train_y must be in 0\.\.1"),
    ],
    ids=[
        "test-names",
        "test-numbers",
        "unknown-name",
        "unnamed-name",
        "nan",
        "overflow",
        "int-samples",
        "bool-samples",
        "one-axis",
        "objects",
        "unequal",
        "widths",
        "float-labels",
        "one-hot",
        "labels-from-1",
        "huge-label",
        "negative-label",
        "one-class",
        "one-other-class",
        "one-name",
        "test-label",
        "number-names",
        "few-names",
    ],
)
def test_wrong_npz_data_names_the_file(tmp_path, changes, message):
    path = _save(tmp_path / "wrong.npz", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_keys_are_listed(tmp_path):
    path = tmp_path / "keys.npz"
    np.savez(path, data=TRAIN_X, target=TRAIN_Y)
    with pytest.raises(ValueError, match=r"must hold train_x.*it holds data, target"):
        load_dataset(path)


@pytest.mark.parametrize("names", [("test_x", "test_y"), ("x_test",)])
def test_a_part_of_a_split_beside_x_and_y_is_refused(tmp_path, names):
    path = tmp_path / "half.npz"
    np.savez(path, x=TRAIN_X, y=TRAIN_Y, **dict.fromkeys(names, TRAIN_Y))
    with pytest.raises(ValueError, match=f"also {', '.join(names)}: leave these out, or name all"):
        load_dataset(path)


def test_a_missing_path_a_text_file_and_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=r"data file .*none\.npz does not exist"):
        load_dataset(tmp_path / "none.npz")
    (tmp_path / "table.csv").write_text("1,2\n")
    np.save(tmp_path / "x.npy", TRAIN_X)
    for name in ("table.csv", "x.npy"):
        with pytest.raises(
            ValueError, match=r"is not a kind of file .*numpy\.savez\('mine\.npz', x="
        ):
            load_dataset(tmp_path / name)
    (tmp_path / "cut.npz").write_text("1,2\n")
    with pytest.raises(ValueError, match=r"cannot read .*cut\.npz as an \.npz file"):
        load_dataset(tmp_path / "cut.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="does not hold four idx files"):
        load_dataset(tmp_path / "empty")


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_idx_folder(tmp_path, mnist_folder, packed):
    arrays = mnist_folder(tmp_path / "mine", packed=packed)
    data = load_dataset(tmp_path / "mine")
    assert data.name == "mine"
    assert data.num_classes == 10
    np.testing.assert_array_equal(data.test_x[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])


def test_idx_folder_with_float_features(tmp_path, mnist_folder):
    train, test = RNG.random((12, 6)).astype(np.float32), RNG.random((4, 6)).astype(np.float32)
    mnist_folder(tmp_path, train_images=train, t10k_images=test)
    data = load_dataset(tmp_path)
    assert data.sample_shape == (6,)
    np.testing.assert_array_equal(data.train_x.numpy(), train)


def test_two_classes_of_one_name_are_refused(tmp_path):
    path = _save(tmp_path / "own.npz", class_names=np.array(["a", "b", "b"]))
    with pytest.raises(ValueError, match="'b' twice"):
        load_dataset(path)
