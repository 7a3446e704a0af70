"""Multiply-adds of a network, counted while one sample of zeros passes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from spela.layers import LocalLayer
from spela.layers.block import sample_dtype
from spela.layers.hooks import hooked_input
from spela.layers.modes import probing

__all__ = ["LayerCost", "count_multiply_adds", "layer_costs", "multiply_adds"]


class LayerCost(NamedTuple):
    """Multiply-adds of one sample in one SPELA layer and the modules before it."""

    forward: int  # from the previous SPELA layer's output to this layer's
    scores: int  # from this layer's output to its class scores


def _projection_flops(z: torch.Size, projection: torch.Size, vectors: torch.Size, *_, **__) -> int:  # type: ignore[no-untyped-def]
    batch, kernels, size = z
    dim, groups = projection[2], vectors[1]
    return 2 * batch * kernels * (size * dim + dim * groups)


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_, **__) -> int:  # type: ignore[no-untyped-def]
    return int(sdpa_flop_count(query, key, value))


def _lstm_flops(x: torch.Size, weight: torch.Size, recurrent: torch.Size, *_, **__) -> int:  # type: ignore[no-untyped-def]
    return 2 * x[0] * x[1] * (weight.numel() + recurrent.numel())


@contextmanager
def _as_products() -> Iterator[None]:
    """Layers of attention as the products they are made of, not as one operation of no known cost."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def layer_costs(
    net: nn.Sequential, sample_shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> list[LayerCost]:
    """Multiply-adds of one sample in each SPELA layer: products of matrices and convolutions.

    Elementwise work (activations, norms, pooling, averages over kernels) is not counted, nor are the fused
    recurrent layers of a GPU.

    Args:
        net: A network with SPELA layers; whatever stands between them is counted too.
        sample_shape: Shape of one input, without the batch axis.
        dtype: Of the input; None: that of the first block's samples (int64 of tokens), else the parameters'.

    Returns:
        One `LayerCost` a SPELA layer, first to last.

    Raises:
        ValueError: If samples of that shape do not pass through the network, or it has no SPELA layer.

    Source: the formulas of torch.utils.flop_counter, halved; for the projection, the products of its op.

    Example:
        >>> from spela.layers import SpelaLinear
        >>> net = nn.Sequential(SpelaLinear(4, 16, 3), nn.Dropout(), SpelaLinear(16, 8, 3))
        >>> layer_costs(net, (4,))
        [LayerCost(forward=64, scores=48), LayerCost(forward=128, scores=24)]
    """
    device = next(net.parameters(), torch.empty(0, device="cpu")).device
    x = torch.zeros(1, *sample_shape, dtype=dtype or sample_dtype(net), device=device)
    costs, forward = [], 0
    try:
        with probing(net):  # one sample has no batch statistics
            x = hooked_input(net, x)
            for module in net:
                counted, x = count_multiply_adds(module, x)
                forward += counted
                if isinstance(module, LocalLayer):
                    costs.append(LayerCost(forward, count_multiply_adds(module.scores, x)[0]))
                    forward = 0
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"samples of shape {sample_shape} do not pass through the network: {error}"
        ) from None
    if not costs:
        raise ValueError("`net` has no SPELA layer: there is nothing to count up to")
    return costs


@torch.no_grad()
def count_multiply_adds(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[int, Tensor]:
    """Multiply-adds of a call, and what it returned.

    Args:
        function: A module, or a method of one.
        x: Its input.

    Example:
        >>> count_multiply_adds(nn.Linear(4, 3), torch.ones(2, 4))[0]
        24
    """
    formulas = {
        # Registered by the layers' import; the counter sees the op, not what runs inside it.
        torch.ops.spela.projection_forward: _projection_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        torch.ops.aten.mkldnn_rnn_layer: _lstm_flops,
    }
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with _as_products(), counter:
        y = function(x)
    return counter.get_total_flops() // 2, y


def multiply_adds(net: nn.Sequential, sample_shape: tuple[int, ...]) -> list[int]:
    """What a sample has cost when each SPELA layer has answered: all layers and scores up to there.

    Args:
        net: A network with SPELA layers.
        sample_shape: Shape of one input, without the batch axis.

    Returns:
        Cumulative multiply-adds, one number a SPELA layer.

    Raises:
        ValueError: As `layer_costs`.

    Example:
        >>> from spela.layers import SpelaLinear
        >>> multiply_adds(nn.Sequential(SpelaLinear(4, 16, 3), SpelaLinear(16, 8, 3)), (4,))
        [112, 264]
    """
    totals, total = [], 0
    for cost in layer_costs(net, sample_shape):
        total += cost.forward + cost.scores
        totals.append(total)
    return totals
