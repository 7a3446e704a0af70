"""The photo datasets of the transfer experiment, laid out as torchvision leaves them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spela.data.flower_names import FLOWER_NAMES
from spela.data.mat import read_mat
from spela.data.photos import PhotoSet
from spela.data.reading import reading
from spela.data.source import Source, first_folder_with

__all__ = ["photo_sources"]

_Listed = list[tuple[Path, int]]  # image file, class index


@dataclass(frozen=True)
class _Layout:
    """Where a photo dataset comes from and where its parts lie in its folder."""

    name: str
    folder: str  # torchvision's, so that both share the files
    images: str
    lists: tuple[str, ...]
    archives: tuple[tuple[str, str], ...]  # URL and MD5 ("" where none is known)
    read: Callable[[Path], tuple[_Listed, _Listed, tuple[str, ...]]]
    extra: tuple[tuple[str, str], ...] = ()  # further files, URL and MD5
    into: str = ""  # where the archives are unpacked, under the data root


def photo_sources() -> tuple[Source, ...]:
    """`pets`, `aircraft`, `food101` and `flowers102`."""
    return tuple(_source(layout) for layout in _LAYOUTS)


def _source(layout: _Layout) -> Source:
    def find(data_root: Path) -> Path | None:
        folders = [data_root / layout.folder, data_root / layout.name, data_root]
        there = tuple(folder for folder in folders if (folder / layout.images).is_dir())
        return first_folder_with(layout.lists, there)

    def photos(folder: Path) -> PhotoSet:
        train, test, class_names = layout.read(folder)
        return PhotoSet(
            name=layout.name,
            train_files=tuple(file for file, _ in train),
            train_y=torch.tensor([label for _, label in train], dtype=torch.int64, device="cpu"),
            test_files=tuple(file for file, _ in test),
            test_y=torch.tensor([label for _, label in test], dtype=torch.int64, device="cpu"),
            class_names=class_names,
            source=str(folder),
        )

    def fetch(staging: Path) -> None:
        from torchvision.datasets import utils  # here because it takes a second to import

        into = staging / layout.into
        for url, md5 in layout.archives:
            archive = Path(url).name
            utils.download_and_extract_archive(url, into, filename=archive, md5=md5 or None)
            (into / archive).unlink()
        for url, md5 in layout.extra:
            utils.download_url(url, into, Path(url).name, md5)

    return Source(
        name=layout.name,
        find=find,
        read=lambda folder: photos(folder).load(),
        photos=photos,
        fetch=fetch,
        folder=layout.folder,
        files=(f"the folder {layout.images}", *layout.lists),
    )


def _lines(path: Path) -> list[str]:
    with reading(path, "a list of images"):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not text: {error.reason}; replace the file") from error
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _pets(folder: Path) -> tuple[_Listed, _Listed, tuple[str, ...]]:
    # A line: image name, class 1..37, cat or dog, breed within these.
    names: dict[int, str] = {}

    def part(file: str) -> _Listed:
        listed: _Listed = []
        for line in _lines(folder / "annotations" / file):
            words = line.split()
            if len(words) != 4 or not re.fullmatch("[1-9][0-9]{0,17}", words[1]):
                raise ValueError(
                    f"{folder / 'annotations' / file}: {line!r} must be a name and three numbers from 1"
                )
            label = int(words[1]) - 1
            names[label] = words[0].rsplit("_", 1)[0].replace("_", " ")
            listed.append((folder / "images" / f"{words[0]}.jpg", label))
        return listed

    train, test = part("trainval.txt"), part("test.txt")
    count = max(names, default=-1) + 1
    return train, test, tuple(names.get(label, str(label)) for label in range(min(count, 1000)))


def _aircraft(folder: Path) -> tuple[_Listed, _Listed, tuple[str, ...]]:
    # 100 variants; a line: image name, blank, variant.
    class_names = tuple(_lines(folder / "data" / "variants.txt"))
    index = {name: label for label, name in enumerate(class_names)}

    def part(file: str) -> _Listed:
        listed = []
        for line in _lines(folder / "data" / file):
            image, _, variant = line.partition(" ")
            if variant not in index:
                raise ValueError(
                    f"{folder / 'data' / file}: {line!r} names no variant of variants.txt"
                )
            listed.append((folder / "data" / "images" / f"{image}.jpg", index[variant]))
        return listed

    return part("images_variant_trainval.txt"), part("images_variant_test.txt"), class_names


def _food(folder: Path) -> tuple[_Listed, _Listed, tuple[str, ...]]:
    # JSON: class -> names of its images, "class/number".
    def content(file: str) -> dict[str, list[str]]:
        path = folder / "meta" / file
        with reading(path, "a list of images"):
            try:
                lists = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path} is not JSON ({error}); replace the file") from error
        if not isinstance(lists, dict) or not all(
            isinstance(names, list) and all(isinstance(name, str) for name in names)
            for names in lists.values()
        ):
            raise ValueError(f"{path} must hold a list of image names for every class")
        return lists

    lists = content("train.json"), content("test.json")
    class_names = tuple(sorted(lists[0]))
    if sorted(lists[1]) != list(class_names):
        raise ValueError(f"{folder / 'meta'}: train.json and test.json must hold the same classes")
    train, test = (
        [
            (folder / "images" / f"{image}.jpg", label)
            for label, name in enumerate(class_names)
            for image in part[name]
        ]
        for part in lists
    )
    return train, test, class_names


def _flowers(folder: Path) -> tuple[_Listed, _Listed, tuple[str, ...]]:
    # Two MATLAB files number images and classes from 1; training is their "trnid" and "valid".
    labels = read_mat(folder / "imagelabels.mat", ("labels",)).get("labels")
    parts = read_mat(folder / "setid.mat", ("trnid", "valid", "tstid"))
    if labels is None or len(parts) != 3:
        raise ValueError(
            f"{folder}: imagelabels.mat must hold labels, setid.mat trnid, valid and tstid"
        )
    classes = labels.reshape(-1).astype(np.int64) - 1

    def part(*names: str) -> _Listed:
        numbers = np.concatenate([parts[name].reshape(-1) for name in names]).astype(np.int64)
        if numbers.size and not 1 <= numbers.min() <= numbers.max() <= classes.size:
            raise ValueError(
                f"{folder / 'setid.mat'} numbers images {numbers.min()}..{numbers.max()}, "
                f"imagelabels.mat labels 1..{classes.size}"
            )
        return [(folder / "jpg" / f"image_{n:05d}.jpg", int(classes[n - 1])) for n in numbers]

    return part("trnid", "valid"), part("tstid"), FLOWER_NAMES


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
# Addresses and checksums: torchvision 0.21's (Aircraft: it has none).
_LAYOUTS = (
    _Layout(
        name="pets",
        folder="oxford-iiit-pet",
        images="images",
        lists=("annotations/trainval.txt", "annotations/test.txt"),
        archives=(
            (f"{_OXFORD}/pets/data/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
            (f"{_OXFORD}/pets/data/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"),
        ),
        into="oxford-iiit-pet",
        read=_pets,
    ),
    _Layout(
        name="aircraft",
        folder="fgvc-aircraft-2013b",
        images="data/images",
        lists=(
            "data/variants.txt",
            "data/images_variant_trainval.txt",
            "data/images_variant_test.txt",
        ),
        archives=((f"{_OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz", ""),),
        read=_aircraft,
    ),
    _Layout(
        name="food101",
        folder="food-101",
        images="images",
        lists=("meta/train.json", "meta/test.json"),
        archives=(
            (
                "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                "85eeb15f3717b99a5da872d97d918f87",
            ),
        ),
        read=_food,
    ),
    _Layout(
        name="flowers102",
        folder="flowers-102",
        images="jpg",
        lists=("imagelabels.mat", "setid.mat"),
        archives=((f"{_OXFORD}/flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),),
        extra=(
            (f"{_OXFORD}/flowers/102/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
            (f"{_OXFORD}/flowers/102/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
        ),
        into="flowers-102",
        read=_flowers,
    ),
)
