"""The estimator's network: linear layers on rows, the mean of their scores, the modes that both run in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from sklearn import config_context
from torch import Tensor, nn

from spela.layers import RowNorm, SpelaLinear
from spela.network import SpelaSequential

__all__ = ["build_rows_network", "mean_scores", "plain_mode", "scoring_dtype"]

# Rows scored at a time: a wide layer's outputs stay in cache.
_ROWS = 1000
_DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def plain_mode() -> Iterator[None]:
    """Training and scoring as in a fresh process, whatever modes the program around has set.

    Gradients are on, new tensors are no inference tensors, nothing is cast to 16 bits, NumPy's underflow is
    no error, and scikit-learn's transformers return arrays.

    Example:
        >>> with torch.inference_mode(), plain_mode():
        ...     torch.is_grad_enabled(), torch.ones(1).is_inference()
        (True, False)
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        _without_autocast(),
        np.errstate(all="ignore"),
        config_context(transform_output="default"),
    ):
        yield


@contextmanager
def _without_autocast() -> Iterator[None]:
    with ExitStack() as stack:
        for kind in filter(torch.is_autocast_enabled, _DEVICE_TYPES):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def build_rows_network(
    features: int, sizes: Sequence[int], num_classes: int, seed: int, **settings: Any
) -> SpelaSequential:
    """A float32 SpelaLinear for every size, with a `RowNorm` before each but the first.

    Args:
        features: I of the input.
        sizes: Outputs of each layer.
        num_classes: C.
        seed: Of class vectors and weights; torch's global generator is left as it is.
        **settings: Of `SpelaLinear`.

    Returns:
        The network, on the CPU.

    Raises:
        ValueError: As `SpelaLinear`.

    Example:
        >>> build_rows_network(4, (8, 8), 3, seed=0)(torch.randn(5, 4)).shape
        torch.Size([5, 3])
    """
    generator = torch.Generator().manual_seed(seed)
    modules: list[nn.Module] = []
    # nn.Linear draws once from the global generator before the layer draws from its own.
    with torch.random.fork_rng(devices=[]):
        for size in sizes:
            if modules:
                modules.append(RowNorm("rms"))
            layer = SpelaLinear(
                features,
                size,
                num_classes,
                generator=generator,
                device="cpu",
                dtype=torch.float32,
                **settings,
            )
            modules.append(layer)
            features = size
    return SpelaSequential(*modules)


def scoring_dtype(device: torch.device) -> torch.dtype:
    """Float64 where the device has it: a row's scores then do not depend on its batch."""
    return torch.float32 if device.type == "mps" else torch.float64


@torch.no_grad()
def mean_scores(net: SpelaSequential, x: Tensor) -> Tensor:
    """`net.mean_scores` of any number of rows, in eval mode.

    Args:
        net: The network.
        x: (N, I) rows in its dtype.

    Returns:
        (N, C) in [-1, 1].

    Example:
        >>> net = build_rows_network(4, (8, 8), 3, seed=0)
        >>> mean_scores(net, torch.randn(5, 4)).shape
        torch.Size([5, 3])
    """
    net.eval()
    return torch.cat([net.mean_scores(rows) for rows in x.split(_ROWS)])
