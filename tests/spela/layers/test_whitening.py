"""PatchWhitening: what comes out has no correlation, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spela import PatchWhitening, SpelaConv2d, SpelaSequential


def _images(count: int = 300, channels: int = 3) -> torch.Tensor:
    """Smooth ones: pixels that are nearly their neighbours."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(count, channels, 14, 13, generator=generator)
    return torch.nn.functional.avg_pool2d(noise, 3, stride=1)


@pytest.mark.parametrize(("channels", "size"), [(3, 2), (1, 2), (2, 3)])
def test_it_is_the_inverse_square_root_of_the_patches_covariance(channels: int, size: int) -> None:
    x = _images(channels=channels).double()
    whiten = PatchWhitening(channels, size, 0.02, dtype=torch.float64).fit(x)
    windows = np.lib.stride_tricks.sliding_window_view(x.numpy(), (size, size), axis=(2, 3))
    patches = np.moveaxis(windows, 1, 3).reshape(-1, channels * size**2)
    covariance = np.cov(patches.T, bias=True)
    covariance += 0.02 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    matrix = whiten.weight.flatten(1).numpy()
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-9)
    assert (np.linalg.eigvalsh(matrix) > 0).all()
    np.testing.assert_allclose(matrix @ covariance @ matrix, np.eye(len(matrix)), atol=1e-9)
    found = whiten(x)[:, :, : 1 - size, : 1 - size]  # those that do not pass an edge
    expected = (patches - patches.mean(0)) @ matrix
    np.testing.assert_allclose(
        found.permute(0, 2, 3, 1).reshape(expected.shape).numpy(), expected, atol=1e-9
    )


def test_numbers_have_hardly_any_correlation() -> None:
    x = _images()
    white = PatchWhitening(3).fit(x)(x)[:, :, :-1, :-1].transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(white)
    assert float((correlation - torch.eye(12)).abs().max()) < 0.06
    assert float(torch.corrcoef(x.flatten(1).T[:13])[0, 1]) > 0.5
    assert white.mean(1).abs().max() < 1e-4


def test_a_patch_past_an_edge_repeats_the_last_pixels() -> None:
    whiten = PatchWhitening(1)
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert whiten.outputs == 4
    assert whiten(x)[0].flatten(1).T.tolist() == [
        [0, 1, 3, 4], [1, 2, 4, 5], [2, 2, 5, 5], [3, 4, 3, 4], [4, 5, 4, 5], [5, 5, 5, 5]
    ]  # fmt: skip


def test_pixels_are_taken_as_the_network_is_given_them() -> None:
    pixels = (255 * _images()).to(torch.uint8)
    whiten = PatchWhitening(3).fit(pixels)
    assert torch.equal(whiten.weight, PatchWhitening(3).fit(pixels.double() / 255).weight)
    with pytest.raises(TypeError, match=r"pixels by x\.float\(\) / 255"):
        whiten(pixels)


def test_images_far_from_zero_are_whitened_alike() -> None:
    x = _images().double()
    near, far = (PatchWhitening(3, dtype=torch.float64).fit(images) for images in (x, x + 1e6))
    torch.testing.assert_close(near.weight, far.weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(near(x), far(x + 1e6), rtol=0, atol=1e-4)


def test_what_does_not_fit_changes_nothing() -> None:
    whiten = PatchWhitening(3)
    before = whiten.weight.clone()
    constant = torch.full((4, 3, 5, 5), 0.3)
    for wrong, words in (
        (torch.rand(4, 2, 5, 5), r"\(B, 3, H, W\)"),
        (torch.rand(4, 3, 5), r"\(B, 3, H, W\)"),
        (torch.rand(0, 3, 5, 5), "at least one image"),
        (torch.rand(4, 3, 1, 5), "at least 2 x 2 pixels"),
        (constant, "nothing to whiten"),
        (constant / 0, "must be finite"),
    ):
        with pytest.raises(ValueError, match=words):
            whiten.fit(wrong)
    assert torch.equal(whiten.weight, before)
    assert not whiten.bias.any()
    for channels, size, regularization in ((0, 2, 0.01), (3, 0, 0.01), (3, 2, 0.0)):
        with pytest.raises(ValueError, match=r"at least 1|positive"):
            PatchWhitening(channels, size, regularization)


def test_a_saved_network_keeps_it(tmp_path: Path) -> None:
    x = _images()
    whiten = PatchWhitening(3, regularization=0.1).fit(x)
    layer = SpelaConv2d(whiten.outputs, 4, 3, output_size=(5, 4), num_classes=3)
    net = SpelaSequential(whiten, layer).eval()
    net.save_pretrained(tmp_path / "net")
    loaded = SpelaSequential.from_pretrained(tmp_path / "net")
    assert loaded[0].regularization == 0.1
    assert torch.equal(loaded(x[:5]), net(x[:5]))
