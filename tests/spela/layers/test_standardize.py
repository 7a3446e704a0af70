"""Standardize: its values against NumPy, what it refuses, and the bits of many steps in one call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from spela import RowNorm, SpelaLinear, SpelaSequential, Standardize
from spela.optim import LocalAdam


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5)])
def test_it_is_numpys_standardisation(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    # More samples than it takes at a time, offsets and deviations of all sizes.
    offset = np.array([1000.0, -2.0, 0.0]).reshape(3, *(1,) * (len(shape) - 1))
    size = np.array([1e-3, 5.0, 1e4]).reshape(offset.shape)
    x = (offset + size * rng.normal(size=(5000, *shape))).astype(np.float32)
    scale = Standardize(shape, dtype=torch.float64).fit(torch.from_numpy(x))
    axes = (0, *range(2, x.ndim))
    exact = x.astype(np.float64)
    mean, deviation = exact.mean(axes, keepdims=True), exact.std(axes, keepdims=True)
    np.testing.assert_allclose(scale.mean.numpy(), mean[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(scale.deviation.numpy(), deviation[0], rtol=1e-9)
    found = scale(torch.from_numpy(exact[:7])).numpy()
    np.testing.assert_allclose(found, (exact[:7] - mean) / deviation, rtol=1e-8, atol=1e-8)


def test_pixels_are_scaled_as_the_network_is_given_them() -> None:
    pixels = torch.randint(0, 256, (50, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(torch.uint8)
    of_pixels = Standardize((3, 4, 4)).fit(pixels)
    of_floats = Standardize((3, 4, 4)).fit(pixels.double() / 255)
    assert torch.equal(of_pixels.mean, of_floats.mean)
    assert torch.equal(of_pixels.deviation, of_floats.deviation)
    assert abs(float(of_pixels(pixels / 255).mean())) < 1e-5


def test_a_constant_feature_is_only_centred() -> None:
    x = torch.tensor([[0.1, 0.0, 1.0], [0.1, 0.0, 3.0], [0.1, 0.0, 5.0]])
    scale = Standardize((3,)).fit(x)
    assert scale.deviation.tolist()[:2] == [1.0, 1.0]
    assert scale(torch.tensor([[1.1, 2.0, 3.0]])).tolist() == [[1.0, 2.0, 0.0]]


def test_nothing_is_changed_before_fit_or_by_what_does_not_fit() -> None:
    scale, x = Standardize((2,)), torch.randn(4, 2)
    assert torch.equal(scale(x), x)
    for wrong in (torch.randn(4, 3), torch.randn(0, 2), torch.randn(4, 2, 1)):
        with pytest.raises(ValueError, match=r"must be \(N, 2\)"):
            scale.fit(wrong)
    assert torch.equal(scale(x), x)
    for shape in ((), (2, 3), (0,)):
        with pytest.raises(ValueError, match="sample_shape"):
            Standardize(shape)


def _network(scaled: bool) -> SpelaSequential:
    generator = torch.Generator().manual_seed(0)
    first: list[nn.Module] = [Standardize((2, 3, 3)).fit(_samples()[0])] if scaled else []
    layers = [SpelaLinear(size, 8, 3, generator=generator) for size in (18, 8)]
    return SpelaSequential(*first, nn.Flatten(), layers[0], RowNorm(), layers[1])


def _samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = 3 + 2 * torch.randn(50, 2, 3, 3, generator=generator)
    return x, torch.randint(0, 3, (50,), generator=generator)


def test_steps_are_those_of_samples_scaled_before() -> None:
    x, target = _samples()
    states = []
    for scaled in (True, False):
        net = _network(scaled)
        inputs = x if scaled else Standardize((2, 3, 3)).fit(x)(x)
        optimizer = LocalAdam(net.parameters(), lr=0.01)
        losses = net.local_steps(inputs, target, optimizer, batch_size=20)
        for batch, labels in zip(inputs.split(20), target.split(20), strict=True):
            losses = torch.cat([losses, net.local_step(batch, labels, optimizer)[None]])
        states.append((losses, *(p.detach() for p in net.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_a_saved_network_keeps_its_scale(tmp_path: Path) -> None:
    net, (x, _) = _network(True).eval(), _samples()
    net.save_pretrained(tmp_path / "net")
    loaded = SpelaSequential.from_pretrained(tmp_path / "net")
    assert torch.equal(loaded[0].mean, net[0].mean)
    assert torch.equal(loaded(x), net(x))


def test_a_deviation_below_the_dtype_is_none() -> None:
    x = torch.tensor([[1e-50, 1.0], [-1e-50, 2.0]], dtype=torch.float64)
    module = Standardize((2,)).fit(x)
    assert module.deviation.tolist() == [1.0, 0.5]
    assert module(x.float()).tolist() == [[0.0, -1.0], [0.0, 1.0]]


def test_pixels_are_refused_where_they_would_be_taken_on_another_scale() -> None:
    pixels = torch.randint(256, (20, 8), dtype=torch.uint8)
    scale = Standardize((8,)).fit(pixels)
    for call in (scale, SpelaSequential(scale, SpelaLinear(8, 16, 3))):
        with pytest.raises(
            TypeError, match=r"`x` is torch\.uint8: convert it, pixels by x\.float\(\) / 255"
        ):
            call(pixels)
    assert scale(pixels.float() / 255).std(correction=0) == pytest.approx(1, abs=1e-5)


def test_samples_of_another_shape_are_refused() -> None:
    images = Standardize((3, 8, 8)).fit(torch.randn(10, 3, 8, 8))
    assert images(torch.randn(2, 3, 9, 7)).shape == (2, 3, 9, 7)  # channels are what is scaled
    for shape in ((3, 1, 8, 8), (3, 8, 8), (2, 3)):
        with pytest.raises(ValueError, match=r"`x` must be \(B, 3, 8, 8\), got"):
            images(torch.randn(shape))
    with pytest.raises(ValueError, match=r"`x` must be \(B, 4\), got \(3, 1\)"):
        Standardize((4,)).fit(torch.randn(9, 4))(torch.randn(3, 1))


def test_a_deviation_that_half_precision_lacks_divides_nothing() -> None:
    x = torch.randn(50, 2) * torch.tensor([1.0, 1e-9])
    scaled = Standardize((2,)).fit(x).half()(x.half())
    assert scaled.isfinite().all()
    assert (scaled[:, 1] == 0).all()
