"""Whole steps of a stack of linear layers in one compiled call (`steps.c`), where built and fitting.

Around small products, Python and the operators' wrappers take longer than the products: here they run once
for all layers and as many batches as there are. Axes: N samples, B batch, I in, O out, C classes.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spela_kernels.activations import get_activation
from spela_kernels.contracts import Settings
from spela_kernels.cosines import NORM_EPS
from spela_kernels.cpu.gemm_choice import pinned_library
from spela_kernels.cpu.products import fits as products_fit
from spela_kernels.cpu.products import linear_fits
from spela_kernels.cpu.sources import built_module
from spela_kernels.linear.compiled import OBJECTIVES
from spela_kernels.linear.types import Buffers, Parameters
from spela_kernels.objectives import COSINE_MARGIN, get_objective
from spela_kernels.precision import runs_as_written
from spela_kernels.rules import AdamRule, SgdRule

__all__ = [
    "LARGEST",
    "Planned",
    "Ready",
    "fits",
    "is_built",
    "norm_fits",
    "norm_rows",
    "prepare",
    "run",
]

_steps: Any = built_module("spela_kernels.linear._steps")

# Multiply-adds of a layer's product up to which one call is taken. It was faster than operators at all sizes,
# least at the largest (`bench/crossing_table.py`), where other machines' libraries may be faster than ours.
LARGEST = 128 << 20
_CODES = OBJECTIVES | {"softmax": 5}
_ACTIVATIONS = {"leaky_relu": 0, "identity": 0, "relu": 1, "gelu": 2}
# struct layer of steps.c
_LAYER = struct.Struct("@8q7P8d")


class Planned(NamedTuple):
    """A layer that takes steps."""

    params: Parameters
    vectors: Tensor  # (C, O)
    settings: Settings
    rule: SgdRule | AdamRule
    first: Buffers  # as in `Step`
    second: Buffers
    norm: float = 0.0  # that rows of its input are scaled to; 0: they are left as they are
    dropout: float = 0.0  # probability that a number of its input, then, becomes zero; below 1


def is_built() -> bool:
    """Whether the compiled steps were built at installation.

    Example:
        >>> is_built() in (True, False)
        True
    """
    return _steps is not None


def norm_fits(x: Tensor) -> bool:
    """Whether `norm_rows` was built and takes this tensor, and nothing is to be recorded of it.

    Args:
        x: Any tensor.
    """
    return (
        _steps is not None
        and x.dim() == 2
        and x.dtype == torch.float32
        and not (x.requires_grad and torch.is_grad_enabled())
        and x.is_contiguous()
        and runs_as_written(x)
    )


def norm_rows(x: Tensor, norm: float) -> Tensor:
    """x / max(|x|, 1e-12) * norm by row, as inside a step.

    Args:
        x: (B, I) float32 on the CPU, rows packed; `norm_fits` has taken it.
        norm: Above 0.

    Returns:
        (B, I).

    Example:
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> not norm_fits(x) or norm_rows(x, 10.0).tolist() == [[6.0, 8.0]]
        True
    """
    y = torch.empty_like(x)
    _steps.norm(x.data_ptr(), x.shape[0], x.shape[1], norm, y.data_ptr())
    return y


def fits(layer: Planned, batch: int) -> bool:
    """Whether the compiled steps were built and take this layer.

    Args:
        layer: On the CPU.
        batch: B.
    """
    weight, bias, slope = layer.params
    settings = layer.settings
    if (
        _steps is None
        or slope is not None
        or batch * max(weight.numel(), layer.vectors.numel()) > LARGEST
        or settings.objective not in _CODES
        or not get_objective(settings.objective).in_kernels
        or settings.activation not in _ACTIVATIONS
        or not get_activation(settings.activation).in_kernels
        or pinned_library() not in (None, "compiled")
        or not linear_fits(layer.vectors, weight, bias)
    ):
        return False
    outputs = weight.shape[0]
    if layer.vectors.shape[1:] != (outputs,) or (bias is not None and bias.shape != (outputs,)):
        return False
    if not 0 < settings.scale < math.inf:
        return False
    # Read and written by address: an optimizer's state may have been loaded, of any shape, or in part.
    rule = layer.rule
    needed = (True, True) if isinstance(rule, AdamRule) else (rule.momentum != 0, False)
    return all(
        _is_like(t, p) if t is not None else p is None or not needs
        for buffers, needs in zip((layer.first, layer.second), needed, strict=True)
        for t, p in zip(buffers, layer.params, strict=True)
    )


def _is_like(state: Tensor, parameter: Tensor | None) -> bool:
    return (
        parameter is not None
        and state.shape == parameter.shape
        and state.device == parameter.device
        and products_fit(state)
    )


class Ready(NamedTuple):
    """Steps that nothing can refuse any more: `take` them, then read what they found."""

    take: Callable[[], None]
    losses: Tensor  # (steps, layers) from before the updates
    y: Tensor  # the last layer's output for the last batch


def prepare(
    layers: Sequence[Planned],
    x: Tensor,
    target: Tensor,
    sizes: Sequence[int],
    rates: Sequence[tuple[float, float]],
) -> Ready:
    """A step on every batch: each layer learns right after its own forward, and the next one follows.

    Args:
        layers: First to last; each `fits`, and takes as many inputs as the one before has outputs.
        x: (N, I) float32, rows packed, N at least 1.
        target: (N,) int64 labels, checked, packed.
        sizes: Samples of every batch, at least 1 each and N together; B is the largest.
        rates: `rules.rates_of` every step and layer, a step's layers together.

    Source: `reference.py` and `rules.py`, whose mathematics this is.
    """
    last = layers[-1].params.weight
    losses = x.new_empty(len(sizes), len(layers))
    y = x.new_empty(max(sizes), last.shape[0])
    numbers = torch.tensor(rates, dtype=torch.float64, device="cpu")
    masks = _masks(layers, sizes) if any(p.dropout > 0 for p in layers) else None
    packed = b"".join(map(_packed, layers))
    scratch = x.new_empty(_steps.scratch(packed, len(y)))  # of torch's memory, which is counted

    def take() -> None:
        _steps.run(
            packed, x.data_ptr(), target.data_ptr(), array("q", sizes).tobytes(),
            numbers.data_ptr(), 0 if masks is None else masks.data_ptr(), NORM_EPS, COSINE_MARGIN,
            losses.data_ptr(), y.data_ptr(), scratch.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip

    return Ready(take, losses, y[: sizes[-1]])


def run(
    layers: Sequence[Planned],
    x: Tensor,
    target: Tensor,
    sizes: Sequence[int],
    rates: Sequence[tuple[float, float]],
) -> tuple[Tensor, Tensor]:
    """What `prepare` takes, at once.

    Returns:
        losses (steps, layers) from before the updates, and the last layer's output for the last batch.
    """
    take, losses, y = prepare(layers, x, target, sizes, rates)
    take()
    return losses, y


def _masks(layers: Sequence[Planned], sizes: Sequence[int]) -> Tensor:
    """What inputs are multiplied by, batch after batch, layer after layer: drawn as torch's dropout."""
    dropped = [(p.params.weight.shape[1], p.dropout) for p in layers if p.dropout > 0]
    masks = torch.empty(
        sum(sizes) * sum(inputs for inputs, _ in dropped), device="cpu", dtype=torch.float32
    )
    start = 0
    for samples in sizes:
        for inputs, share in dropped:
            size = samples * inputs
            masks[start : start + size].bernoulli_(1 - share).div_(1 - share)
            start += size
    return masks


def _packed(layer: Planned) -> bytes:
    weight, bias, _ = layer.params
    settings, rule = layer.settings, layer.rule
    places = (t.data_ptr() if t is not None else 0 for t in (*layer.first[:2], *layer.second[:2]))
    first, bias_first, second, bias_second = places
    momentum = rule.momentum if isinstance(rule, SgdRule) else 0.0
    shares = (
        (1 - rule.beta1, 1 - rule.beta2, rule.eps)
        if isinstance(rule, AdamRule)
        else (0.0, 0.0, 0.0)
    )
    return _LAYER.pack(
        weight.shape[1], weight.shape[0], layer.vectors.shape[0], _CODES[settings.objective],
        _ACTIVATIONS[settings.activation], isinstance(rule, AdamRule), layer.dropout > 0,
        isinstance(rule, SgdRule) and rule.nesterov,
        weight.data_ptr(), 0 if bias is None else bias.data_ptr(), layer.vectors.data_ptr(),
        first, second, bias_first, bias_second,
        layer.norm, settings.negative_slope if settings.activation == "leaky_relu" else 1.0,
        settings.scale, momentum, rule.weight_decay, *shares,
    )  # fmt: skip
