"""The photo datasets, from tiny folders laid out like the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from spela.data import PhotoSet, is_available, load_dataset, load_images
from spela.data.photos import read_photo

NAMES = ["pets", "aircraft", "food101", "flowers102"]


def _photo(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (80, 60)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def _pets(root: Path) -> Path:
    folder = root / "oxford-iiit-pet"
    for name in ("Abyssinian_1", "Great_Pyrenees_7", "Abyssinian_2", "Great_Pyrenees_9"):
        _photo(folder / "images" / f"{name}.jpg", (200, 0, 0) if name[0] == "A" else (0, 0, 200))
    (folder / "annotations").mkdir()
    lists = {
        "trainval.txt": "# a comment\nAbyssinian_1 1 1 1\nGreat_Pyrenees_7 2 2 1\n",
        "test.txt": "Great_Pyrenees_9 2 2 1\nAbyssinian_2 1 1 1\n",
    }
    for file, text in lists.items():
        (folder / "annotations" / file).write_text(text)
    return folder


def _aircraft(root: Path) -> Path:
    data = root / "fgvc-aircraft-2013b" / "data"
    for name in ("0001", "0002", "0003"):
        _photo(data / "images" / f"{name}.jpg", (200, 0, 0) if name != "0002" else (0, 0, 200))
    (data / "variants.txt").write_text("707-320\nF/A 18\n")
    (data / "images_variant_trainval.txt").write_text("0001 707-320\n0002 F/A 18\n")
    (data / "images_variant_test.txt").write_text("0003 707-320\n")
    return data.parent


def _food(root: Path) -> Path:
    folder = root / "food-101"
    for name in ("waffles/1", "waffles/2", "apple_pie/1"):
        _photo(folder / "images" / f"{name}.jpg", (200, 0, 0) if name[0] == "a" else (0, 0, 200))
    (folder / "meta").mkdir()
    train = {"waffles": ["waffles/1"], "apple_pie": ["apple_pie/1"]}
    (folder / "meta" / "train.json").write_text(json.dumps(train))
    test = {"waffles": ["waffles/2"], "apple_pie": []}
    (folder / "meta" / "test.json").write_text(json.dumps(test))
    return folder


def _flowers(root: Path) -> Path:
    folder = root / "flowers-102"
    for number in range(1, 5):
        colour = (200, 0, 0) if number != 3 else (0, 0, 200)
        _photo(folder / "jpg" / f"image_{number:05d}.jpg", colour)
    labels = np.array([[77, 77, 1, 102]], np.uint8)
    savemat(folder / "imagelabels.mat", {"labels": labels})
    parts = {"trnid": [[1]], "valid": [[3]], "tstid": [[4, 2]]}
    savemat(folder / "setid.mat", {k: np.array(v, np.uint16) for k, v in parts.items()})
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "pets": _pets,
    "aircraft": _aircraft,
    "food101": _food,
    "flowers102": _flowers,
}
# Training labels, test labels, and the name of a class.
EXPECTED = {
    "pets": ([0, 1], [1, 0], (1, "Great Pyrenees")),
    "aircraft": ([0, 1], [0], (1, "F/A 18")),
    "food101": ([0, 1], [1], (0, "apple_pie")),
    "flowers102": ([76, 0], [101, 76], (0, "pink primrose")),
}


@pytest.mark.parametrize("name", NAMES)
def test_labels_names_and_pixels(name: str, tmp_path: Path) -> None:
    assert not is_available(name, tmp_path)
    folder = WRITERS[name](tmp_path)
    assert is_available(name, tmp_path)
    train, test, (index, class_name) = EXPECTED[name]
    data = load_dataset(name, tmp_path, download=False)
    assert (data.train_y.tolist(), data.test_y.tolist()) == (train, test)
    assert data.class_names[index] == class_name
    assert data.source == str(folder)
    assert data.sample_shape == (3, 64, 64)
    # Red where the first class of the training list is, blue where the second is (JPEG is not exact).
    middle = data.train_x[:, :, 32, 32].numpy().astype(int)
    assert np.abs(middle - np.array([[200, 0, 0], [0, 0, 200]])).max() < 8


@pytest.mark.parametrize("name", NAMES)
def test_images_stay_files_until_a_size_is_known(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    photos = load_images(name, tmp_path)
    assert isinstance(photos, PhotoSet)
    assert photos.pixels("train", [1, 0], 96).shape == (2, 3, 96, 96)
    photos.train_files[1].unlink()
    assert photos.pixels("train", [0], 20).shape == (1, 3, 20, 20)
    with pytest.raises(ValueError, match=r"cannot read .*\.jpg as an image: .*No such file"):
        photos.pixels("train", [1], 20)


def test_the_middle_square_is_what_is_seen(tmp_path: Path) -> None:
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, 40:80] = 255  # white in the middle third, black beside it
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert read_photo(tmp_path / "wide.png", 40).min() == 255
    assert read_photo(tmp_path / "wide.png", 20)[:, :, 1:-1].min() == 255
    # A photo turned by its EXIF data is turned back first.
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels[:, :60], pixels[:, 60:] = 0, 255
    Image.fromarray(pixels[:, 40:80]).save(tmp_path / "turned.png", exif=exif)
    turned = read_photo(tmp_path / "turned.png", 40)
    assert turned[:, :18].max() < 30
    assert turned[:, 22:].min() > 225


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        (
            "pets",
            "annotations/test.txt",
            "Abyssinian_1 one 1 1\n",
            "must be a name and three numbers",
        ),
        ("pets", "annotations/test.txt", "", "0 images"),
        ("pets", "annotations/test.txt", "Abyssinian_1 99999999999999 1 1\n", "labels must be in"),
        ("aircraft", "data/images_variant_test.txt", "0003 747\n", "names no variant"),
        ("food101", "meta/test.json", "{", "is not JSON"),
        ("food101", "meta/test.json", "[" * 100_000, "is not JSON"),
        ("food101", "meta/test.json", '{"waffles": 3}', "must hold a list"),
        ("food101", "meta/test.json", '{"waffles": []}', "the same classes"),
        ("flowers102", "setid.mat", "no matlab file", "setid.mat"),
    ],
)
def test_damaged_lists_are_one_line(
    name: str, file: str, text: str, message: str, tmp_path: Path
) -> None:
    (WRITERS[name](tmp_path) / file).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(name, tmp_path, download=False)
    assert "\n" not in str(caught.value)


def test_flowers_that_are_not_labelled_are_named(tmp_path: Path) -> None:
    folder = _flowers(tmp_path)
    savemat(folder / "setid.mat", {"trnid": [[9]], "valid": [[1]], "tstid": [[2]]})
    with pytest.raises(ValueError, match=r"numbers images 1\.\.9"):
        load_dataset("flowers102", tmp_path, download=False)
