"""Datasets by name, and the one function that loads any of them or a user's own file."""

from __future__ import annotations

import os
from pathlib import Path

from spela.data.cifar import cifar_sources
from spela.data.dataset import Dataset
from spela.data.digits import digits_source
from spela.data.files import load_file
from spela.data.mnist import mnist_sources
from spela.data.photo_sources import photo_sources
from spela.data.photos import PhotoSet
from spela.data.reading import reading
from spela.data.source import Source, default_data_root, download_into
from spela.data.svhn import svhn_source
from spela.files.text import did_you_mean

__all__ = ["canonical_name", "dataset_names", "is_available", "load_dataset", "load_images"]

_SOURCES = {
    source.name: source
    for source in (
        digits_source(),
        *mnist_sources(),
        *cifar_sources(),
        svhn_source(),
        *photo_sources(),
    )
}


def dataset_names() -> tuple[str, ...]:
    """The names `load_dataset` knows.

    Example:
        >>> dataset_names()[:7]
        ('digits', 'fashion-mnist', 'mnist', 'kmnist', 'cifar10', 'cifar100', 'svhn')
        >>> dataset_names()[7:]
        ('pets', 'aircraft', 'food101', 'flowers102')
    """
    return tuple(_SOURCES)


def is_available(name: str, data_root: str | os.PathLike[str] | None = None) -> bool:
    """Whether a named dataset can be loaded without a download (its files are not read).

    Args:
        name: one of `dataset_names()`.
        data_root: the folder for datasets; None for `default_data_root()`.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> is_available("digits")
        True
    """
    source = _SOURCES.get(_canonical(name))
    if source is None:
        raise ValueError(_unknown(name))
    return _find(source, _root(data_root)) is not None


def load_dataset(
    name_or_path: str | os.PathLike[str],
    data_root: str | os.PathLike[str] | None = None,
    *,
    download: bool = True,
    split_seed: int | None = 0,
) -> Dataset:
    """Load a dataset into CPU memory, by name or from a user's own file.

    Args:
        name_or_path: one of `dataset_names()` (photos of many sizes as squares of 64 pixels); or an
            .npz or .safetensors file or a folder with four idx files (`spela.data.files.load_file`
            says what they hold).
        data_root: the folder for datasets; None for `default_data_root()`.
        download: download a named dataset that is not there.
        split_seed: which samples of an .npz file with only x and y become test samples; None: all are
            training and test samples.

    Raises:
        ValueError: an unknown name, missing files, a failed download, or unreadable or wrong data.

    Example:
        >>> load_dataset("digits").train_x.shape
        torch.Size([1437, 1, 8, 8])
    """
    text = os.fspath(name_or_path)
    source = _SOURCES.get(_canonical(text))
    if source is not None:
        return _load(source, _root(data_root), download)
    path = Path(os.path.expanduser(text))  # unlike pathlib's, no error where there is no such user
    if os.path.exists(path):  # False, not an error, where a folder on the way may not be searched
        return load_file(path, split_seed=split_seed)
    if len(path.parts) > 1 or path.suffix:
        raise ValueError(f"data file {text} does not exist; check the path")
    raise ValueError(_unknown(text))


def load_images(
    name_or_path: str | os.PathLike[str],
    data_root: str | os.PathLike[str] | None = None,
) -> Dataset | PhotoSet:
    """Load a dataset as `load_dataset` does, but leave photos of many sizes in their files.

    Args:
        name_or_path: as for `load_dataset`.
        data_root: the folder for datasets; None for `default_data_root()`.

    Returns:
        A `PhotoSet`, whose images are read at the size that is asked for; else the `Dataset`.

    Raises:
        ValueError: as `load_dataset`.
    """
    source = _SOURCES.get(_canonical(os.fspath(name_or_path)))
    if source is None or source.photos is None:
        return load_dataset(name_or_path, data_root)
    return source.photos(_folder(source, _root(data_root), download=True))


def _load(source: Source, data_root: Path, download: bool) -> Dataset:
    return source.read(_folder(source, data_root, download))


def _folder(source: Source, data_root: Path, download: bool) -> Path:
    folder = _find(source, data_root)
    if folder is None and download:
        download_into(data_root, source)
        folder = _find(source, data_root)
    if folder is None:
        raise ValueError(
            f"dataset {source.name!r} is not under {data_root}: {source.placement(data_root)}, "
            "choose another data root, or allow the download"
        )
    return folder


def _find(source: Source, data_root: Path) -> Path | None:
    with reading(data_root, "a data root"):
        return source.find(data_root)


def _root(data_root: str | os.PathLike[str] | None) -> Path:
    return default_data_root() if data_root is None else Path(os.path.expanduser(data_root))


def canonical_name(name: str) -> str | None:
    """The registry's spelling of a dataset's name; None for what is none, such as a file.

    Example:
        >>> canonical_name("Fashion_MNIST"), canonical_name("mine.npz")
        ('fashion-mnist', None)
    """
    spelt = _canonical(name)
    return spelt if spelt in _SOURCES else None


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def _unknown(name: str) -> str:
    hint = did_you_mean(_canonical(name), _SOURCES)
    return (
        f"unknown dataset {name!r}: {hint}known are {', '.join(_SOURCES)}; "
        "or give an .npz or .safetensors file or a folder with idx files"
    )
