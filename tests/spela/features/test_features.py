"""Features: what the backbone saw, which samples, and the file as a dataset of a run."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from spela.cli import main
from spela.data import Dataset, PhotoSet, load_dataset, read_tensor_facts
from spela.features import (
    Backbone,
    Selection,
    describe,
    extract_features,
    is_cached,
    save_features,
    select_samples,
)


class _Means(nn.Module):
    """Mean of each channel, then the image's corner: simple enough to know the answer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean(dim=(2, 3)), x[:, :, 0, 0]], dim=1)


MEANS = Backbone("means", _Means(), (0.5, 0.25, 0.0), (0.5, 0.25, 2.0), "0" * 64)


def _images(channels: int, count: int = 6) -> Dataset:
    x = torch.arange(count, dtype=torch.uint8).mul(51)[:, None, None, None]
    x = x.expand(count, channels, 5, 7).contiguous()
    y = torch.arange(count) % 2
    return Dataset("flat", x, y, x[:3], y[:3], num_classes=2, class_names=("even", "odd"))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_normalised_channel_by_channel(channels: int) -> None:
    data = _images(channels)
    found = extract_features(data, MEANS, 32, batch_size=4)
    level = torch.arange(6) * 51 / 255
    expected = torch.stack([(level - 0.5) / 0.5, (level - 0.25) / 0.25, level / 2], dim=1)
    assert torch.allclose(found.train_x, expected.repeat(1, 2), atol=1e-6)
    assert torch.equal(found.train_y, data.train_y)
    assert torch.equal(found.test_x, found.train_x[:3])
    assert (found.name, found.class_names) == ("flat-means-32", ("even", "odd"))


def test_samples_are_drawn_by_the_seed() -> None:
    data = _images(1)
    some = [extract_features(data, MEANS, 32, Selection(4, 2, seed)) for seed in (0, 0, 1)]
    index = select_samples(6, 4, 0, "train")
    assert torch.equal(some[0].train_y, data.train_y[index])
    assert torch.allclose(some[0].train_x[:, 2] * 2 * 255 / 51, index.float())
    assert torch.equal(some[0].train_x, some[1].train_x)
    assert not torch.equal(some[0].train_x, some[2].train_x)
    assert len(some[0].test_x) == 2
    for count in (0, 7):
        with pytest.raises(ValueError, match=rf"'flat': train samples must be .* 6, got {count}"):
            extract_features(data, MEANS, 32, Selection(train=count))


def test_progress_counts_images() -> None:
    calls: list[tuple[int, int]] = []
    extract_features(_images(1), MEANS, 32, batch_size=4, on_batch=lambda *c: calls.append(c))
    assert calls == [(4, 9), (6, 9), (9, 9)]


def test_photos_are_cut_not_squeezed(tmp_path: Path) -> None:
    for name, colour in (("a", (255, 0, 0)), ("b", (0, 255, 0))):
        Image.new("RGB", (90, 45), colour).save(tmp_path / f"{name}.png")
    files = (tmp_path / "a.png", tmp_path / "b.png")
    y = torch.tensor([0, 1])
    photos = PhotoSet("two", files, y, files[:1], y[:1], ("red", "green"))
    found = extract_features(photos, MEANS, 32)
    assert torch.equal(found.train_x[:, :3], torch.tensor([[1.0, -1.0, 0.0], [-1.0, 3.0, 0.0]]))
    assert describe(photos, MEANS, 32, Selection())["photos"] == "centre square"


def test_samples_that_are_no_images_and_a_size_too_small() -> None:
    x, y = torch.eye(4), torch.tensor([0, 1, 0, 1])
    rows = Dataset("rows", x, y, x, y, num_classes=2, class_names=("a", "b"))
    with pytest.raises(ValueError, match=r"'rows' has samples of shape \(4,\)"):
        extract_features(rows, MEANS, 32)
    with pytest.raises(ValueError, match="size must be at least 32"):
        extract_features(_images(1), MEANS, 31)


def test_features_can_be_learnt_from_by_autograd() -> None:
    found = extract_features(_images(1), MEANS, 32)
    layer = nn.Linear(6, 2)
    nn.functional.cross_entropy(layer(found.train_x), found.train_y).backward()
    assert layer.weight.grad is not None
    assert not found.train_x.requires_grad


def test_the_backbone_stays_as_it_was() -> None:
    """In training mode its batch norm would see batches: it is run in eval mode, and on a copy."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    before = {name: value.clone() for name, value in net.state_dict().items()}
    strides = [parameter.stride() for parameter in net.parameters()]
    backbone = Backbone("fresh", net, (0.0,) * 3, (1.0,) * 3, "0" * 64)
    found = [extract_features(_images(3), backbone, 32, batch_size=size).train_x for size in (2, 6)]
    torch.testing.assert_close(*found)
    assert net.training
    assert [parameter.stride() for parameter in net.parameters()] == strides
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("part", ["train_x", "test_x"])
def test_floats_that_are_no_scaled_pixels_are_refused(part: str) -> None:
    data = _images(3)
    scaled = replace(data, train_x=data.train_x / 255, test_x=data.test_x / 255)
    whole = extract_features(scaled, MEANS, 32)
    torch.testing.assert_close(whole.train_x, extract_features(data, MEANS, 32).train_x)
    wrong = replace(scaled, **{part: getattr(scaled, part) * 255})
    with pytest.raises(
        ValueError, match=rf"'flat': {part} holds floats from 0 to .*divided by 255"
    ):
        extract_features(wrong, MEANS, 32)


def test_the_file_is_the_dataset_and_says_how_it_was_made(tmp_path: Path) -> None:
    data, chosen = _images(1), Selection(4, None, 7)
    path = tmp_path / "new" / "f.safetensors"
    facts = describe(data, MEANS, 32, chosen)
    found = extract_features(data, MEANS, 32, chosen)
    assert not is_cached(path, facts)
    save_features(path, found, facts)
    read = load_dataset(path)
    for part in ("train_x", "train_y", "test_x", "test_y"):
        assert torch.equal(getattr(read, part), getattr(found, part)), part
    assert (read.name, read.class_names) == ("flat-means-32", ("even", "odd"))
    held = read_tensor_facts(path)
    assert held["weights_sha256"] == "0" * 64
    assert (held["size"], held["mean"], held["std"]) == (32, [0.5, 0.25, 0.0], [0.5, 0.25, 2.0])
    assert (held["dataset"], held["train_samples"], held["seed"]) == ("flat", 4, 7)
    assert is_cached(path, facts)
    for other in (Selection(4, None, 8), Selection(5, None, 7)):
        with pytest.raises(ValueError, match="already holds other data"):
            is_cached(path, describe(data, MEANS, 32, other))
    changed = replace(data, test_x=data.test_x.flip(0))
    with pytest.raises(ValueError, match=r"already holds other data \(data_digest differ\)"):
        is_cached(path, describe(changed, MEANS, 32, chosen))
    assert describe(data, MEANS, 32, Selection())["seed"] is None
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        is_cached(tmp_path / "f.npz", facts)
    content = bytearray(path.read_bytes())
    content[-5] ^= 64
    path.write_bytes(content)
    assert not is_cached(path, facts)  # damaged: to be made again


def _spela(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["spela", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite_pytorch") is None,
    reason='needs pip install -e ".[transfer]"',
)
def test_features_train_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "digits.safetensors", tmp_path / "run"
    command = ("features", "--data", "digits", "--size", "32", "--train-samples", "400")
    command += ("--test-samples", "100", "--out", file)
    assert _spela(monkeypatch, *command) == 0
    default = (*command[:-2], "--data-root", tmp_path)
    assert _spela(monkeypatch, *default) == 0
    there = tmp_path / "features" / "digits-efficientnet-lite0.safetensors"
    assert read_tensor_facts(there) == read_tensor_facts(file)
    assert torch.equal(load_dataset(there).test_x, load_dataset(file).test_x)
    written = file.stat().st_mtime_ns
    assert _spela(monkeypatch, *command) == 0
    assert "already holds these features" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == written
    assert _spela(monkeypatch, *command, "--seed", "1") == 2
    assert capsys.readouterr().err.count("\n") == 1
    train = ("train", "--data", file, "--recipe", "transfer", "--layers", "32,16", "--epochs", "8")
    assert _spela(monkeypatch, *train, "--out", out) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["dataset"] == "digits-efficientnet-lite0-32"
    assert summary["test_accuracy"][0] > 0.6  # 32-pixel digits through an ImageNet network
    assert all(
        best > first + 0.05
        for first, best in zip(summary["test_accuracy"], summary["top5_accuracy"], strict=True)
    )
    capsys.readouterr()
    assert _spela(monkeypatch, "evaluate", out) == 0
    shown = capsys.readouterr().out
    assert ", ".join(f"{100 * share:.2f} %" for share in summary["top5_accuracy"]) in shown


def test_a_file_that_cannot_be_written_is_refused_before_the_images_are_read(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(
        "spela.features.extract_features", lambda *_, **__: pytest.fail("extracted")
    )
    monkeypatch.setattr("spela.features.load_backbone", lambda *_: MEANS)
    out = tmp_path / "file" / "x.safetensors"
    assert _spela(monkeypatch, "features", "--data", "digits", "--out", out) == 2
    assert "cannot write" in capsys.readouterr().err


def test_what_cannot_be_asked_for_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("features", "--data", "digits", "--size", "32", "--backbone", "means", "--out")
    monkeypatch.setattr("spela.features.load_backbone", lambda *_: MEANS)
    assert _spela(monkeypatch, *command, tmp_path) == 2
    assert f"{tmp_path} is a folder: give --out the name of a file" in capsys.readouterr().err
    assert _spela(monkeypatch, *command, tmp_path / "f.safetensors", "--seed", 2**63) == 2
    assert "--seed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
