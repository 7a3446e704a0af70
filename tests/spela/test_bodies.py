"""The named networks: sizes, places to cut, seeds, and images they do not take."""

from __future__ import annotations

import pytest
import torch

from spela.bodies import NETWORKS, build_body
from spela.cutting import cut_network


@pytest.mark.parametrize(
    ("name", "width", "features", "places"),
    [("vgg", 16, 256, 6), ("cifarnet", 8, 32, 7), ("resnet", 8, 32, 7), ("vit", 16, 16, 10)],
)
def test_rows_parameters_and_places(name: str, width: int, features: int, places: int) -> None:
    body = build_body(name, (3, 32, 32), width, seed=0)
    x = torch.randn(2, 3, 32, 32)
    assert body(x).shape == (2, features)
    assert len(cut_network(body, x, "layers")) == places
    again, other = (build_body(name, (3, 32, 32), width, seed=s) for s in (0, 1))
    pairs = list(zip(body.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


@pytest.mark.parametrize(
    ("side", "tokens"), [(4, 16), (8, 16), (9, 9), (16, 16), (28, 16), (32, 16), (64, 64)]
)
def test_tokens_of_a_transformer(side: int, tokens: int) -> None:
    body = build_body("vit", (1, side, side), 8, seed=0)
    assert body[0](torch.randn(2, 1, side, side)).shape == (2, tokens, 8)


def test_a_seed_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build_body("vit", (1, 28, 28), 0, seed=0)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_gray_images_of_odd_sizes(name: str) -> None:
    body = build_body(name, (1, 28, 30), 0, seed=0)
    assert body(torch.randn(2, 1, 28, 30)).dim() == 2


@pytest.mark.parametrize(
    ("name", "shape", "width", "message"),
    [
        ("vgg", (64,), 0, "needs images"),
        ("vgg", (1, 8, 8), 0, "at least 16 x 16 pixels, got 8 x 8: use --resize"),
        ("vit", (1, 28, 28), 30, "multiple of 4"),
    ],
)
def test_what_they_do_not_take(name: str, shape: tuple[int, ...], width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_body(name, shape, width, seed=0)
