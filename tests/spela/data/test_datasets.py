"""The named datasets, read from small files in their real formats."""

from __future__ import annotations

import gzip
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from spela.data import dataset_names, default_data_root, is_available, load_dataset, mnist
from spela.data.cifar_names import CIFAR100_NAMES

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def test_names_and_the_default_root(monkeypatch):
    assert dataset_names()[:2] == ("digits", "fashion-mnist")
    monkeypatch.setenv("SPELA_DATA_ROOT", "/somewhere")
    assert default_data_root() == Path("/somewhere")
    monkeypatch.delenv("SPELA_DATA_ROOT")
    assert default_data_root() == Path.home() / ".cache" / "spela" / "data"


def test_a_user_without_a_home_has_a_folder_for_temporary_files(monkeypatch):
    """As in a container that runs under a number, which no list of users has."""

    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.delenv("SPELA_DATA_ROOT", raising=False)
    root = Path(tempfile.gettempdir(), f"spela-{os.getuid()}")
    assert default_data_root() == root / ".cache" / "spela" / "data"
    assert load_dataset("digits").num_classes == 10
    monkeypatch.setenv("SPELA_DATA_ROOT", "~nobody-of-this-name/data")
    with pytest.raises(ValueError, match="there is no such home: name a folder"):
        default_data_root()


@pytest.mark.parametrize(
    ("name", "hint"),
    [("fashon-mnist", "did you mean 'fashion-mnist'"), ("CIFAR-10", "'cifar10'"), ("zzz", "known")],
)
def test_an_unknown_name_lists_the_known_ones(name, hint):
    for call in (load_dataset, is_available):
        with pytest.raises(ValueError, match=hint) as caught:
            call(name)
        assert all(known in str(caught.value) for known in dataset_names())


def test_a_name_may_be_written_with_capitals_and_underscores(empty_root, mnist_folder):
    mnist_folder(empty_root)
    assert load_dataset("Fashion_MNIST", empty_root).name == "fashion-mnist"


def test_digits_are_exact_and_split_by_class():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    data = load_dataset("digits", "/no/such/root", download=False)
    assert (len(data.train_y), len(data.test_y)) == (1437, 360)
    assert data.sample_shape == (1, 8, 8)
    assert data.num_features == 64
    counts = torch.bincount(torch.from_numpy(bunch.target))
    assert (torch.bincount(data.test_y) - counts / 5).abs().max() < 1
    # Every image is there once, in one of the parts, at its exact value.
    rows = torch.cat([data.train_x, data.test_x]).flatten(1) * 16
    labels = torch.cat([data.train_y, data.test_y])
    found = sorted(map(tuple, torch.cat([rows, labels[:, None]], 1).tolist()))
    wanted = sorted(map(tuple, np.c_[bunch.data, bunch.target].tolist()))
    assert found == wanted
    # The split never moves: both parts in file order, of each class the same samples.
    order = np.argsort(bunch.target, kind="stable")
    wanted_test = bunch.images[np.sort(order[::5])]
    np.testing.assert_array_equal(data.test_x[:, 0].numpy() * 16, wanted_test)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("fashion-mnist", "."),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("mnist", "MNIST/raw"),
        ("kmnist", "KMNIST/raw"),
    ],
)
def test_mnist_family_values(empty_root, mnist_folder, name, folder, packed):
    assert not is_available(name, empty_root)
    arrays = mnist_folder(empty_root / folder, packed=packed)
    assert is_available(name, empty_root)
    data = load_dataset(name, empty_root, download=False)
    for part, prefix in (("train", "train"), ("test", "t10k")):
        x, y = getattr(data, f"{part}_x"), getattr(data, f"{part}_y")
        assert x.dtype == torch.uint8
        assert y.dtype == torch.int64
        np.testing.assert_array_equal(x[:, 0].numpy(), arrays[f"{prefix}-images-idx3-ubyte"])
        np.testing.assert_array_equal(y.numpy(), arrays[f"{prefix}-labels-idx1-ubyte"])
    assert data.sample_shape == (1, 28, 28)
    assert data.num_classes == 10


def test_folders_with_a_name_come_before_the_root(empty_root, mnist_folder):
    mnist_folder(empty_root)
    mnist_folder(empty_root / "MNIST" / "raw", t10k_labels=np.array([7, 7, 7, 7], np.uint8))
    assert load_dataset("mnist", empty_root).test_y.tolist() == [7, 7, 7, 7]
    assert load_dataset("kmnist", empty_root).test_y.tolist() == [3, 9, 0, 1]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_files_in_the_root_whose_labels_begin_as_another_sets_are_not_taken(
    empty_root, mnist_folder, monkeypatch, name, packed
):
    monkeypatch.setattr(mnist, "_DEBIAN_FASHION", empty_root / "nothing")
    first = {
        "mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5],
        "fashion-mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 0, 9],
    }
    mnist_folder(empty_root, packed=packed, train_labels=np.array(first[name], np.uint8))
    for other in ("mnist", "fashion-mnist", "kmnist"):
        assert is_available(other, empty_root) is (other == name)


def test_one_missing_idx_file_means_not_available(empty_root, mnist_folder):
    mnist_folder(empty_root / "MNIST" / "raw")
    (empty_root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    assert not is_available("mnist", empty_root)
    with pytest.raises(ValueError, match=r"put train-images-idx3-ubyte\.gz.* into .*MNIST/raw"):
        load_dataset("mnist", empty_root, download=False)


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (
            {"train_labels": np.full(12, 10, np.uint8)},
            r"train_y must be in 0\.\.9.* that of sample 0 is 10",
        ),
        ({"train_labels": np.zeros(11, np.uint8)}, "12 samples but train_y has 11 labels"),
        ({"t10k_images": np.zeros((4, 14, 14), np.uint8)}, "but test_x samples are"),
        ({"t10k_images": np.zeros((0, 28, 28), np.uint8)}, "at least one sample"),
        ({"t10k_labels": np.zeros(4, np.float32)}, "integer class indices"),
    ],
    ids=["label-10", "unequal", "sizes", "empty", "float-labels"],
)
def test_wrong_mnist_data_names_the_place(empty_root, mnist_folder, replace, message):
    folder = empty_root / "MNIST" / "raw"
    mnist_folder(folder, **replace)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset("mnist", empty_root)
    assert str(folder) in str(caught.value)


def test_a_truncated_gzip_file_is_refused(empty_root, mnist_folder):
    folder = empty_root / "KMNIST" / "raw"
    mnist_folder(folder, packed=True)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot read .*train-images-idx3-ubyte\.gz"):
        load_dataset("kmnist", empty_root)


def test_debian_fashion_mnist():
    if not (DEBIAN_FASHION / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    with gzip.open(DEBIAN_FASHION / "t10k-labels-idx1-ubyte.gz") as stream:
        labels = np.frombuffer(stream.read()[8:], np.uint8)
    data = load_dataset("fashion-mnist", "/no/such/root", download=False)
    assert data.source == str(DEBIAN_FASHION)
    assert tuple(data.train_x.shape) == (60_000, 1, 28, 28)
    assert torch.bincount(data.train_y).tolist() == [6_000] * 10
    np.testing.assert_array_equal(data.test_y.numpy(), labels)
    assert data.class_names[int(data.test_y[0])] == "Ankle boot"


def _cifar(folder: Path, files: tuple[str, ...], label_bytes: int, classes: int) -> dict:
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    parts = {}
    for file in files:
        labels = rng.integers(0, classes, (3, label_bytes), np.uint8)
        images = rng.integers(0, 256, (3, 3, 32, 32), np.uint8)
        records = [
            row.tobytes() + image.tobytes() for row, image in zip(labels, images, strict=True)
        ]
        (folder / file).write_bytes(b"".join(records))
        parts[file] = (images, labels[:, -1])
    return parts


CIFAR10_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")


@pytest.mark.parametrize("folder", ["cifar-10-batches-bin", "."], ids=["archive", "root"])
def test_cifar10_values(tmp_path, folder):
    root = tmp_path / "root"
    parts = _cifar(root / folder, CIFAR10_FILES, 1, 10)
    data = load_dataset("cifar10", root, download=False)
    images = np.concatenate([parts[file][0] for file in CIFAR10_FILES[:5]])
    labels = np.concatenate([parts[file][1] for file in CIFAR10_FILES[:5]])
    np.testing.assert_array_equal(data.train_x.numpy(), images)
    np.testing.assert_array_equal(data.train_y.numpy(), labels)
    np.testing.assert_array_equal(data.test_x.numpy(), parts["test_batch.bin"][0])
    np.testing.assert_array_equal(data.test_y.numpy(), parts["test_batch.bin"][1])
    assert data.class_names[3] == "cat"


def test_cifar100_takes_the_fine_label(tmp_path):
    parts = _cifar(tmp_path / "cifar-100-binary", ("train.bin", "test.bin"), 2, 100)
    data = load_dataset("cifar100", tmp_path, download=False)
    np.testing.assert_array_equal(data.train_x.numpy(), parts["train.bin"][0])
    np.testing.assert_array_equal(data.train_y.numpy(), parts["train.bin"][1])
    np.testing.assert_array_equal(data.test_y.numpy(), parts["test.bin"][1])
    assert data.num_classes == len(set(CIFAR100_NAMES)) == 100
    assert list(CIFAR100_NAMES) == sorted(CIFAR100_NAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "expected a positive multiple of 3073"),
        (lambda data: b"", "has 0 bytes"),
        (lambda data: b"\x0a" + data[1:], r"data_batch_2\.bin holds the label 10"),
    ],
    ids=["truncated", "empty", "label-10"],
)
def test_cifar_damage_names_the_file(tmp_path, change, message):
    folder = tmp_path / "cifar-10-batches-bin"
    _cifar(folder, CIFAR10_FILES, 1, 10)
    path = folder / "data_batch_2.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        load_dataset("cifar10", tmp_path)


def test_a_cifar_with_a_file_missing_is_not_found(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number in range(1, 6):
        (folder / f"data_batch_{number}").write_bytes(b"\x80\x02.")
    assert not is_available("cifar10", tmp_path)
    with pytest.raises(
        ValueError,
        match=r"bin \(the binary version.*cifar-10-binary\.tar\.gz.*batches-py",
    ):
        load_dataset("cifar10", tmp_path, download=False)


def _svhn(folder: Path, **replace: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "train_X": rng.integers(0, 256, (32, 32, 3, 5), np.uint8),
        "train_y": np.array([[1], [10], [9], [2], [10]], np.uint8),
        "test_X": rng.integers(0, 256, (32, 32, 3, 2), np.uint8),
        "test_y": np.array([[10], [5]], np.uint8),
        **replace,
    }
    for part in ("train", "test"):
        content = {"X": arrays[f"{part}_X"], "y": arrays[f"{part}_y"]}
        savemat(folder / f"{part}_32x32.mat", content, do_compression=True)
    return arrays


@pytest.mark.parametrize("folder", ["SVHN", "."], ids=["folder", "root"])
def test_svhn_values_and_its_label_10(tmp_path, folder):
    arrays = _svhn(tmp_path / folder)
    data = load_dataset("svhn", tmp_path, download=False)
    for index in range(5):
        for channel in range(3):
            np.testing.assert_array_equal(
                data.train_x[index, channel].numpy(), arrays["train_X"][:, :, channel, index]
            )
    assert data.train_x.is_contiguous()
    assert data.train_y.tolist() == [1, 0, 9, 2, 0]
    assert data.test_y.tolist() == [0, 5]


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({"train_y": np.array([[1], [11], [9], [2], [10]], np.uint8)}, r"must be in 1\.\.10"),
        ({"train_y": np.array([[1], [2]], np.uint8)}, "must hold 5 integer labels"),
        ({"test_X": np.zeros((32, 32, 3, 2))}, "X must be uint8"),
    ],
    ids=["label-11", "unequal", "float-pixels"],
)
def test_wrong_svhn_data_names_the_file(tmp_path, replace, message):
    _svhn(tmp_path, **replace)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset("svhn", tmp_path)
    assert "_32x32.mat" in str(caught.value)


@pytest.mark.parametrize("size", [0, 100, 300, 2000], ids=str)
def test_a_truncated_mat_file_is_one_line(tmp_path, size):
    _svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"test_32x32\.mat") as caught:
        load_dataset("svhn", tmp_path)
    assert "\n" not in str(caught.value)
