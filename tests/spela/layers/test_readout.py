"""What a head reads of maps, and the gradient that it gives back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spela.layers.readout import pooled_size, read_out


@pytest.mark.parametrize("pooled", [(2, 2), (3, 4), (8, 8)], ids=str)
def test_the_gradient_of_maps_lies_as_the_maps_do(pooled: tuple[int, int]) -> None:
    maps = torch.randn(3, 5, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.randn_like(read_out(maps, pooled))
    last = maps.to(memory_format=torch.channels_last)
    found = []
    for y in (maps, last):
        y = y.clone().requires_grad_()
        found.append(torch.autograd.grad((read_out(y, pooled) * weights).sum(), y)[0])
    first_gradient, last_gradient = found
    torch.testing.assert_close(last_gradient, first_gradient)
    assert first_gradient.is_contiguous()
    assert last_gradient.is_contiguous(memory_format=torch.channels_last)


def test_it_can_be_differentiated_twice() -> None:
    y = torch.randn(2, 3, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last)
    y.requires_grad_()

    def squares(y: Tensor) -> Tensor:
        return read_out(y, (2, 2)).square()

    assert torch.autograd.gradgradcheck(squares, y)


def test_sizes_of_any_map_are_found_at_once() -> None:
    """As a file may claim them: counting up to the side would not end."""
    assert pooled_size((1, 10**15, 10**15), 10**24) == (10**12, 10**12)
    assert pooled_size((2, 10**15, 3), 10**18) == (10**15, 3)
    for shape in ((3, 5, 9), (2, 9, 5), (1, 1, 1), (7, 4, 4)):
        for most in (1, 7, 30, 100, 10_000):
            channels, height, width = shape
            sides = [
                side
                for side in range(1, max(height, width) + 1)
                if channels * min(height, side) * min(width, side) <= most
            ]
            side = max(sides, default=1)
            assert pooled_size(shape, most) == (min(height, side), min(width, side))
