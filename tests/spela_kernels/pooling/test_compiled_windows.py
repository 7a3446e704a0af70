"""The compiled passes over a convolution's map: against torch, at odd sizes, and where they step aside."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from torch.nn.functional import max_pool2d

from spela_kernels.pooling import (
    Normal,
    activate,
    compiled,
    descend,
    scatter_to_maxima_,
    window_maxima,
)
from spela_kernels.pooling.compiled import is_built

needs_build = pytest.mark.skipif(not is_built(), reason="the compiled passes were not built")

# B, K, H, W, window: maps that windows do not fill, one that is a window, kernels that no vector divides.
SIZES = [(3, 5, 7, 9, 2), (2, 33, 8, 10, 3), (1, 1, 2, 2, 2), (2, 16, 4, 6, 2), (4, 70, 11, 3, 3)]
sizes = pytest.mark.parametrize(("batch", "kernels", "height", "width", "window"), SIZES)


def _maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(shape, generator=g).to(dtype)
    return maps.contiguous(memory_format=torch.channels_last)


def _normal(x: torch.Tensor) -> Normal:
    mean, inverse = x.mean((0, 2, 3)), x.var((0, 2, 3)).rsqrt()
    scale = torch.linspace(0, 1.3, len(mean), dtype=x.dtype) * inverse
    return Normal(mean, inverse, scale, torch.linspace(-1, 1, len(mean), dtype=x.dtype))


def _doubled(normal: Normal) -> Normal:
    return Normal(*(values.double() for values in normal))


def test_they_are_built_where_a_compiler_is_at_hand() -> None:
    assert is_built() or shutil.which("cc") is None


@needs_build
@pytest.mark.parametrize("around", [0.0, 1000.0])
@sizes
def test_maxima_and_moments(
    batch: int, kernels: int, height: int, width: int, window: int, around: float
) -> None:
    maps = _maps(batch, kernels, height, width) + around
    found = window_maxima(maps, window)
    assert found.where is None
    assert found.moments is not None
    assert torch.equal(found.values, max_pool2d(maps, window))
    assert found.values.is_contiguous(memory_format=torch.channels_last)
    exact = maps.double()
    mean, variance = exact.mean((0, 2, 3)), exact.var((0, 2, 3), correction=0)
    torch.testing.assert_close(found.moments[0].double(), mean, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.moments[1].double(), variance, rtol=1e-6, atol=0)


@needs_build
@sizes
def test_the_first_of_equals_and_the_last_nan_get_the_gradient(
    batch: int, kernels: int, height: int, width: int, window: int
) -> None:
    maps = _maps(batch, kernels, height, width).round_()  # few values: many are equal
    places = torch.rand(maps.shape, generator=torch.Generator().manual_seed(1))
    maps[places < 0.1] = math.nan
    maps[places > 0.95] = math.inf
    maps[(places > 0.9) & (places < 0.95)] = -math.inf
    leaf = maps.clone().requires_grad_()
    pooled = max_pool2d(leaf, window)
    found = window_maxima(maps, window)
    assert torch.equal(found.values.nan_to_num(7e7), pooled.detach().nan_to_num(7e7))
    dmaxima = _maps(*pooled.shape, seed=2)
    pooled.backward(dmaxima)
    scatter_to_maxima_(maps, window, found.where, dmaxima, None, None)
    assert torch.equal(maps, leaf.grad)


@needs_build
@sizes
def test_the_map_becomes_its_gradient(
    batch: int, kernels: int, height: int, width: int, window: int
) -> None:
    maps = _maps(batch, kernels, height, width)
    slope, offset = _maps(2, kernels, 1, 1, seed=3)[:, :, 0, 0]
    leaf = maps.double().requires_grad_()
    pooled = max_pool2d(leaf, window)
    dmaxima = _maps(*pooled.shape, seed=2)
    pooled.backward(dmaxima.double())
    expected = leaf.grad + (leaf * slope[:, None, None] + offset[:, None, None]).detach()
    scatter_to_maxima_(maps, window, None, dmaxima, slope, offset)
    torch.testing.assert_close(maps.double(), expected, rtol=1e-6, atol=1e-6)


@needs_build
@pytest.mark.parametrize("negative_slope", [0.0, 0.1])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 7, 9), (1, 1, 1, 1), (2, 16, 4, 4), (2, 33, 1, 67)])
def test_activation_and_the_way_back(
    shape: tuple[int, ...], normalised: bool, negative_slope: float
) -> None:
    x, dy = _maps(*shape), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    normal = _normal(torch.cat([x, x + 1])) if normalised else None
    exact = _doubled(normal) if normal is not None else None
    assert compiled.activate(x, normal, negative_slope) is not None
    done = activate(x, normal, negative_slope)
    expected = activate(x.double(), exact, negative_slope)
    for ours, theirs in zip(done, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6)
    kernels_first = done.rows.transpose(0, 1)
    assert kernels_first.is_contiguous()

    there = descend(dy.double(), expected.active, x.double(), exact, negative_slope)
    turned = dy.transpose(0, 1).contiguous().transpose(0, 1)
    for gradient in (dy, turned):
        assert compiled.descend(gradient.flatten(2), done.y, x, normal, negative_slope) is not None
        back = descend(gradient, done.active, x, normal, negative_slope)
        assert back.dx.is_contiguous(memory_format=torch.channels_last)
        for ours, exactly in zip(back, there, strict=True):
            assert (ours is None) == (exactly is None)
            if ours is not None:
                torch.testing.assert_close(ours.double(), exactly, rtol=1e-5, atol=1e-5)


@needs_build
def test_threads_change_nothing() -> None:
    maps, dy, before = _maps(5, 37, 13, 12), torch.ones(5, 37, 6, 6), torch.get_num_threads()
    normal = _normal(maps)
    results = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        try:
            found = window_maxima(maps, 2)
            done = activate(found.values, normal, 0.1)
            back = descend(dy, done.active, found.values, normal, 0.1)
            own = maps.clone()
            scatter_to_maxima_(own, 2, None, back.dx, normal.scale, normal.shift)
        finally:
            torch.set_num_threads(before)
        assert found.moments is not None
        assert back.along is not None
        results.append((found.values, *found.moments, done.rows, back.dx, back.along, own))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_build
def test_they_step_aside() -> None:
    maps, dy = _maps(2, 5, 6, 6), torch.ones(2, 5, 36)
    normal = _normal(maps)
    assert compiled.window_maxima(maps, 2) is not None
    assert compiled.window_maxima(maps, 4) is None
    for wrong in (maps.double(), maps.contiguous(), maps.bfloat16()):
        assert compiled.window_maxima(wrong, 2) is None
        assert compiled.activate(wrong, normal, 0.1) is None
        assert compiled.descend(dy, wrong, maps, normal, 0.1) is None
    assert compiled.activate(maps, _doubled(normal), 0.1) is None
    for wrong in (dy.double(), dy.mT.contiguous().mT):
        assert compiled.descend(wrong, maps, maps, normal, 0.1) is None
    assert compiled.descend(dy, maps, maps, normal, 0.1) is not None


@needs_build
def test_wrong_counts_of_arguments_are_refused() -> None:
    counts = {"window_maxima": 11, "activate": 10, "descend": 15, "scatter_to_maxima": 10}
    for name, expected in counts.items():
        with pytest.raises(TypeError, match=f"expected {expected} arguments, got 1"):
            getattr(compiled._windows, name)(0)


@needs_build
@pytest.mark.parametrize("size", [16, 256])
def test_the_moments_of_a_flat_map_with_one_far_pixel_in_a_corner(size: int) -> None:
    """Sums about that pixel would cancel: a variance below 0, whose root is NaN."""
    maps = torch.zeros(2, 3, size, size)
    maps[0, :, 0, 0] = -1234.567
    maps = maps.contiguous(memory_format=torch.channels_last)
    mean, variance = window_maxima(maps, 2).moments
    wide = maps.double()
    torch.testing.assert_close(mean, wide.mean((0, 2, 3)).float(), rtol=1e-5, atol=0)
    expected = wide.var((0, 2, 3), correction=0).float()
    torch.testing.assert_close(variance, expected, rtol=1e-6, atol=0)
