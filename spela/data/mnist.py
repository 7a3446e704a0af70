"""The MNIST family: four idx files each, from the data root, a torchvision cache or the system."""

from __future__ import annotations

from pathlib import Path

from spela.data.dataset import Dataset
from spela.data.idx import find_idx_files, read_idx, read_idx_files
from spela.data.source import Source

__all__ = ["mnist_sources"]

_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
# The first training labels tell two of the three apart.
_FIRST = {
    "mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5],
    "fashion-mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 0, 9],
}
# Debian's package dataset-fashion-mnist installs the four .gz files here.
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def mnist_sources() -> tuple[Source, ...]:
    """`fashion-mnist`, `mnist` and `kmnist`."""
    return (
        _source("fashion-mnist", "FashionMNIST", _FASHION),
        _source("mnist", "MNIST", _DIGITS),
        _source("kmnist", "KMNIST", _KANA),
    )


def _source(name: str, torchvision_name: str, class_names: tuple[str, ...]) -> Source:
    folder = f"{torchvision_name}/raw"  # torchvision's cache, so that both share the files

    def find(data_root: Path) -> Path | None:
        named = [data_root / name, data_root / folder]
        found = next((path for path in named if find_idx_files(path)), None)
        # The root itself comes after the folders with a name: its four files do not say whose they are.
        if found is None and _may_hold(data_root, name):
            found = data_root
        if found is None and name == "fashion-mnist" and find_idx_files(_DEBIAN_FASHION):
            found = _DEBIAN_FASHION
        return found

    def read(path: Path) -> Dataset:
        arrays = read_idx_files(path)
        return Dataset(name, *arrays, len(class_names), class_names, source=str(path))

    def fetch(staging: Path) -> None:
        from torchvision import datasets  # here because it takes a second to import

        family = getattr(datasets, torchvision_name)
        for file, md5 in family.resources:
            _download_from_any(family.mirrors, file, md5, staging / folder)

    return Source(name=name, find=find, read=read, fetch=fetch, folder=folder, files=_FILES)


def _may_hold(folder: Path, name: str) -> bool:
    """Whether a folder has the four files, and their labels do not begin as another data set's do."""
    files = find_idx_files(folder)
    if files is None:
        return False
    try:
        first = read_idx(files[1])[: len(_FIRST["mnist"])].tolist()
    except ValueError:
        return True  # damaged: reading it says so
    return all(first != labels for other, labels in _FIRST.items() if other != name)


def _download_from_any(mirrors: list[str], file: str, md5: str, folder: Path) -> None:
    from torchvision.datasets import utils

    for position, mirror in enumerate(mirrors):
        try:
            utils.download_url(mirror + file, folder, file, md5)
        except (OSError, RuntimeError):
            if position == len(mirrors) - 1:
                raise
        else:
            return
