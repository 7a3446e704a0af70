"""Downloads, with the network replaced: complete or not at all."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import urllib.request
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
from torchvision.datasets import utils

from spela.data import is_available, load_dataset, registry
from spela.data.source import download_into

DOWNLOADED = ["fashion-mnist", "mnist", "kmnist", "cifar10", "cifar100", "svhn"]
DOWNLOADED += ["pets", "aircraft", "food101", "flowers102"]


@pytest.fixture
def no_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise URLError("[Errno -2] Name or service\nnot known")

    monkeypatch.setattr(urllib.request, "urlopen", fail)


@pytest.mark.parametrize("name", DOWNLOADED)
@pytest.mark.usefixtures("no_internet")
def test_without_internet_the_error_says_what_to_put_where(empty_root, name):
    with pytest.raises(ValueError, match=f"dataset '{name}' .* download failed .*not known") as e:
        load_dataset(name, empty_root)
    message = str(e.value)
    assert "\n" not in message
    assert f"into {empty_root}" in message
    assert any(suffix in message for suffix in (".gz", ".bin", ".mat", ".txt", ".json"))
    assert not empty_root.parent.exists(), "the folders made for the download must be gone"


@pytest.mark.usefixtures("no_internet")
def test_a_failed_download_keeps_what_was_there(empty_root):
    empty_root.mkdir(parents=True)
    (empty_root / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="download failed"):
        load_dataset("mnist", empty_root)
    assert [path.name for path in empty_root.rglob("*")] == ["mine.txt"]


@pytest.mark.parametrize("name", DOWNLOADED)
def test_download_can_be_forbidden(empty_root, monkeypatch, name):
    monkeypatch.setattr(utils, "download_url", lambda *args, **kwargs: pytest.fail("downloaded"))
    with pytest.raises(ValueError, match=f"dataset '{name}' is not under .* allow the download"):
        load_dataset(name, empty_root, download=False)
    assert not empty_root.parent.exists()


def test_a_download_that_stops_half_way_leaves_nothing(empty_root, monkeypatch):
    calls = []

    def half(url, root, filename, md5):
        calls.append(filename)
        Path(root).mkdir(parents=True, exist_ok=True)
        (Path(root) / filename).write_bytes(b"half")
        if len(calls) > 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(utils, "download_url", half)
    with pytest.raises(ValueError, match="No space left on device"):
        load_dataset("svhn", empty_root)
    assert calls == ["train_32x32.mat", "test_32x32.mat"]
    assert not empty_root.parent.exists()


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_download_that_is_killed_while_its_files_are_moved_is_no_dataset(
    empty_root, monkeypatch, name
):
    """Nobody would download it again, and some of its files would be missing."""
    source = registry._SOURCES[name]
    named = [file for file in source.files if not file.startswith("(")]
    files = [
        f"{file.removeprefix('the folder ')}/a.jpg" if file.startswith("the folder ") else file
        for file in named
    ]

    def fetch(staging: Path) -> None:
        for file in files:
            path = staging / source.folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")

    served, move = replace(source, fetch=fetch), os.replace
    for last in range(len(files)):
        moved: list[object] = []

        def move_some(file, target, last=last, moved=moved):
            if len(moved) == last:
                raise KeyboardInterrupt
            moved.append(target)
            move(file, target)

        monkeypatch.setattr(os, "replace", move_some)
        with pytest.raises(KeyboardInterrupt):
            download_into(empty_root, served)
        assert not is_available(name, empty_root), moved
        shutil.rmtree(empty_root)
    monkeypatch.setattr(os, "replace", move)
    download_into(empty_root, served)
    assert is_available(name, empty_root)


def test_ctrl_c_leaves_nothing(empty_root, monkeypatch):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(utils, "download_url", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("kmnist", empty_root)
    assert not empty_root.parent.exists()


def test_wrong_bytes_fail_the_checksum(empty_root, monkeypatch):
    class Response(io.BytesIO):
        url, length = None, 9

    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: Response(b"not gzip!"))
    with pytest.raises(ValueError, match="corrupted"):
        load_dataset("fashion-mnist", empty_root)
    assert not empty_root.parent.exists()


def test_the_next_mirror_is_tried(empty_root, mnist_folder, tmp_path, monkeypatch):
    mnist_folder(tmp_path / "server", packed=True)
    urls = []

    def serve(url, root, filename, md5):
        urls.append(url)
        if "ossci" in url:
            raise URLError("down")
        Path(root).mkdir(parents=True, exist_ok=True)
        (Path(root) / filename).write_bytes((tmp_path / "server" / filename).read_bytes())

    monkeypatch.setattr(utils, "download_url", serve)
    data = load_dataset("mnist", empty_root)
    assert data.source == str(empty_root / "MNIST" / "raw")
    assert len(urls) == 8
    files = sorted(path.name for path in empty_root.rglob("*") if path.is_file())
    assert files == sorted(path.name for path in (tmp_path / "server").iterdir())
    assert not list(empty_root.glob(".download-*"))
    load_dataset("mnist", empty_root)
    assert len(urls) == 8, "a second load must not download"


def test_the_cifar_archive_is_unpacked_and_dropped(empty_root, monkeypatch):
    record = bytes([7, 99]) + bytes(3072)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in ("train.bin", "test.bin", "fine_label_names.txt"):
            info = tarfile.TarInfo(f"cifar-100-binary/{name}")
            info.size = len(record)
            archive.addfile(info, io.BytesIO(record))
    asked = []

    def serve(url, root, filename, md5):
        asked.append((url, md5))
        (Path(root) / filename).write_bytes(stream.getvalue())

    monkeypatch.setattr(utils, "download_url", serve)
    data = load_dataset("cifar100", empty_root)
    assert data.class_names[int(data.train_y[0])] == "worm"
    url = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
    assert asked == [(url, "03b5dce01913d631647c71ecec9e9cb8")]
    assert is_available("cifar100", empty_root)
    assert [path.name for path in empty_root.iterdir()] == ["cifar-100-binary"]


def test_a_broken_archive_leaves_nothing(empty_root, monkeypatch):
    def serve(url, root, filename, md5):
        (Path(root) / filename).write_bytes(gzip.compress(b"no tar"))

    monkeypatch.setattr(utils, "download_url", serve)
    with pytest.raises(ValueError, match=r"dataset 'cifar10' .* download failed"):
        load_dataset("cifar10", empty_root)
    assert not empty_root.parent.exists()


@pytest.mark.usefixtures("no_internet")
def test_a_root_that_is_a_file_is_one_line(tmp_path):
    root = tmp_path / "root"
    root.write_text("a file")
    with pytest.raises(ValueError, match="choose another data root"):
        load_dataset("kmnist", root)
    assert root.read_text() == "a file"
