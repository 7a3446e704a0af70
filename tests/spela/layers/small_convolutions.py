"""A small convolution layer and a batch for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spela import SpelaConv2d

CLASSES = 5


def small_batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 2, 9, 8, generator=g).to(dtype), torch.tensor([0, 1, 2, 3, 4, 1])


def small_layer(seed: int = 1, **options: Any) -> SpelaConv2d:
    options = {"output_size": (3, 3), "symmetric_dim": 7, **options}
    generator = torch.Generator().manual_seed(seed)
    return SpelaConv2d(2, 4, 3, CLASSES, generator=generator, **options)
