"""What no SpelaConv2d can be made of, and batches that leave no trace in one."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from spela import SpelaConv2d, SpelaLinear, optim
from tests.spela.layers.small_convolutions import small_batch, small_layer


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((6, 2, 9, 11), r"\(6, 2, 9, 11\) becomes a 3 x 4 map.*\(3, 3\).*output_size=\(3, 4\)"),
        ((6, 3, 9, 8), r"`x` must be \(B, 2, H, W\)"),
        ((2, 9, 8), r"`x` must be \(B, 2, H, W\)"),
        ((6, 2, 2, 8), "2 padded pixels are fewer than the 3 that the kernel spans"),
    ],
)
@pytest.mark.parametrize("fused", [True, False])
def test_a_refused_batch_leaves_no_trace(shape: tuple[int, ...], message: str, fused: bool) -> None:
    layer, (_, target) = small_layer(), small_batch()
    make = optim.LocalAdam if fused else torch.optim.Adam
    optimizer = make(layer.parameters(), lr=0.1)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(shape)
    with pytest.raises(ValueError, match=message):
        layer.local_step(x, target[: len(x)], optimizer)
    with pytest.raises(ValueError, match="labels 0"):
        layer.local_step(small_batch()[0], target + 1, optimizer)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_parameters_missing_from_the_optimizer_are_named() -> None:
    layer, (x, target) = small_layer(), small_batch()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match="does not hold a parameter"):
        layer.local_step(x, target, optim.LocalSGD([layer.projection], lr=0.1))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "median"}, "`pool` must be 'max', 'avg' or None"),
        ({"pool_size": 0}, "`pool_size` must be at least 1"),
        ({"output_size": (3, 0)}, "`output_size` must be at least 1"),
        ({"symmetric_dim": 1}, "`symmetric_dim` must be at least 2"),
        ({"objective": "hinge"}, "unknown objective"),
        ({"negative_slope": -1.0}, "`negative_slope` must be >= 0 and finite"),
        ({"scale": 0.0}, "`scale` must be > 0"),
        ({"stride": 0}, "`stride` must be at least 1"),
        ({"dilation": (1, 0)}, "`dilation` must be at least 1"),
        ({"output_size": (3, 3, 3)}, r"`output_size` must be a size or \(height, width\)"),
        ({"vectors": torch.zeros(4, 4, 7)}, "must be finite and not zero"),
        ({"vectors": "random"}, "gaussian"),
        ({"vectors": torch.randn(4, 3, 7)}, r"must be \(4, 4, 7\)"),
        ({"grouping": 6}, r"`groups` must be 1\.\.5"),
        ({"grouping": torch.zeros(3, 5).long()}, r"must be \(4, 5\)"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_layer(**options)


def test_kernel_size_is_checked() -> None:
    with pytest.raises(ValueError, match="`kernel_size` must be at least 1"):
        SpelaConv2d(1, 6, 0, 4, (3, 3))


def test_a_batch_of_another_dtype_or_of_nothing_is_refused() -> None:
    layer, (x, target) = small_layer(), small_batch()
    for wrong in (x.double(), x.to(torch.uint8), x.half()):
        with pytest.raises(TypeError, match=r"but the layer torch\.float32: convert one"):
            layer.local_loss(wrong, target)
    with pytest.raises(ValueError, match="a batch needs at least one sample"):
        layer.local_step(x[:0], target[:0], optim.LocalAdam(layer.parameters()))
    assert int(layer.norm.num_batches_tracked) == 0


@pytest.mark.parametrize("name", ["projection_std", "negative_slope"])
def test_infinite_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be .* finite"):
        SpelaConv2d(1, 6, 3, 3, output_size=(2, 2), **{name: math.inf})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_pixels_are_refused_under_autocast_too(dtype: torch.dtype) -> None:
    layer = SpelaConv2d(1, 6, 3, 3, output_size=(3, 3), symmetric_dim=16)
    linear = SpelaLinear(4, 6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(TypeError, match="convert one"):
            layer(torch.ones(2, 1, 8, 8, dtype=dtype))
        with pytest.raises(TypeError, match=str(dtype).removeprefix("torch.")):
            linear.local_loss(torch.ones(2, 4, dtype=dtype), torch.tensor([0, 1]))
