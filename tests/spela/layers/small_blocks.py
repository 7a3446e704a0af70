"""Blocks of every kind of body, for the tests of blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spela import SpelaBlock

CLASSES = 5


class _Tokens(nn.Module):
    """Images to tokens through one attention layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        # Without biases: that of the keys has no gradient but rounding, which Adam makes steps of.
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.patch(x).flatten(2).mT)


class _Twice(nn.Module):
    """One parameter, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.linear(x).tanh())


BODIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "maps": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.LeakyReLU()),
        (3, 10, 9),
    ),
    "tokens": (_Tokens, (3, 8, 8)),
    "rows": (lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh()), (6,)),
    "one parameter twice": (_Twice, (6,)),
    "no parameters": (nn.Tanh, (6,)),
}


def small_block(
    kind: str, *, dtype: torch.dtype = torch.float64, **settings: Any
) -> tuple[SpelaBlock, Tensor, Tensor]:
    torch.manual_seed(0)
    make, shape = BODIES[kind]
    x = torch.randn(12, *shape, dtype=dtype)
    block = SpelaBlock(
        make().to(dtype), CLASSES, x[:2], readout=24, **{"projection": 7, **settings}
    )
    return block, x, torch.arange(12) % CLASSES
