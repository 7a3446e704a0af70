"""Samples split anew, and wrong labels."""

from __future__ import annotations

import pytest
import torch

from spela.data import Dataset, add_label_noise, add_noise, load_dataset, resize_images, split_anew
from spela.experiments import load_data, make_config
from tests.devices import DEVICES


def _numbered(train: int = 60, test: int = 40) -> Dataset:
    x = torch.arange(train + test, dtype=torch.float32)[:, None]
    y = torch.arange(train + test) % 4
    parts = (x[:train], y[:train], x[train:], y[train:])
    return Dataset("numbers", *parts, num_classes=4, class_names=tuple("abcd"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_every_sample_is_in_one_split_with_its_own_label(share: float) -> None:
    data = split_anew(_numbered(), share, seed=1)
    assert len(data.test_y) == round(100 * share)
    x = torch.cat([data.train_x, data.test_x])[:, 0]
    assert sorted(x.tolist()) == list(range(100))
    assert torch.equal(torch.cat([data.train_y, data.test_y]), x.long() % 4)
    assert not torch.equal(data.test_x, split_anew(_numbered(), share, seed=2).test_x)
    assert torch.equal(data.test_x, split_anew(_numbered(), share, seed=1).test_x)


def test_a_split_is_never_empty_and_a_share_out_of_range_is_refused() -> None:
    assert len(split_anew(_numbered(), 0.9999, seed=0).train_y) == 1
    assert len(split_anew(_numbered(), 0.0001, seed=0).test_y) == 1
    with pytest.raises(ValueError, match="test_share must be between 0 and 1"):
        split_anew(_numbered(), 1.0, seed=0)


def test_label_noise_changes_that_share_of_training_labels_to_another_class() -> None:
    data = _numbered()
    noisy = add_label_noise(data, 0.25, seed=0)
    wrong = noisy.train_y != data.train_y
    assert int(wrong.sum()) == 15
    assert int(noisy.train_y.min()) >= 0
    assert int(noisy.train_y.max()) < 4
    assert torch.equal(noisy.test_y, data.test_y)
    assert torch.equal(data.train_y, torch.arange(60) % 4)  # the original is left alone
    with pytest.raises(ValueError, match="share must be in"):
        add_label_noise(data, 1.0, seed=0)


def test_a_run_s_data_follow_its_settings() -> None:
    plain = load_dataset("digits")
    few = load_data(make_config("digits", test_share=0.9))
    assert len(few.train_y) == 180
    assert (
        int(load_data(make_config("digits", label_noise=0.5)).train_y.ne(plain.train_y).sum())
        == 718
    )


@pytest.mark.parametrize("name", ["test_share", "label_noise", "input_dropout"])
def test_settings_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\)"):
        make_config("digits", **{name: 1.0})


def _data(x: torch.Tensor) -> Dataset:
    y = torch.arange(len(x), device=x.device) % 2
    return Dataset("d", x, y, x.clone(), y, num_classes=2, class_names=("a", "b"))


@pytest.mark.parametrize("device", DEVICES)
def test_noise_is_drawn_by_its_seed(device: str) -> None:
    x = torch.zeros(50, 4, device=device)
    found = [add_noise(_data(x), 0.1, seed).train_x for seed in (0, 0, 1)]
    assert found[0].device == x.device
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_noise_leaves_pixels_as_bright_as_they_were() -> None:
    grey = _data(torch.full((2000, 16), 128, dtype=torch.uint8))
    mean = float(add_noise(grey, 0.05, seed=0).train_x.double().mean())
    assert mean == pytest.approx(128, abs=0.2)


def test_images_are_made_smaller_by_means_of_their_pixels() -> None:
    lines = ((torch.arange(16) % 4 == 0) * 255).to(torch.uint8).expand(4, 1, 16, 16).contiguous()
    assert int(resize_images(_data(lines), 4).train_x.min()) > 30
