"""Stacks of linear layers whose steps may be one call: layers that learn, norms and dropout between them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from spela.layers.contract import ChainLayer
from spela.layers.linear import SpelaLinear
from spela.layers.normalize import RowNorm, Standardize
from spela.layers.steps import owns
from spela_kernels.backend import select_backend
from spela_kernels.contracts import Settings, check_labels, check_target
from spela_kernels.linear import Parameters
from spela_kernels.precision import runs_as_written

__all__ = ["chain_of", "modules_ahead", "steps_a_call"]

# What somebody may have set on an instance, to be called instead of its class's.
_CALLED = frozenset({"forward", "local_loss", "local_step"})
# Multiply-adds of one call: a tenth of a second at most of any processor.
_A_CALL = 500_000_000


def modules_ahead(modules: list[nn.Module]) -> int | None:
    """How many modules, first to last, only make each sample a row or scale it, whatever its batch.

    They can be given the samples of many steps at once.

    Args:
        modules: Of a network, in order.

    Returns:
        The count; None where what follows is no stack of linear layers, norms and dropout.

    Example:
        >>> layer = SpelaLinear(3, 4, 2)
        >>> modules_ahead([Standardize((3,)), layer]), modules_ahead([nn.ReLU(), layer])
        (1, None)
    """
    count = 0
    while count < len(modules) and _is_fixed(modules[count]):
        count += 1
    known = all(type(module) in (SpelaLinear, RowNorm, nn.Dropout) for module in modules[count:])
    return count if known else None


def _is_fixed(module: nn.Module) -> bool:
    if module._forward_pre_hooks or module._forward_hooks or _CALLED & vars(module).keys():
        return False
    if type(module) is nn.Flatten:
        return (module.start_dim, module.end_dim) == (1, -1)
    return type(module) is Standardize


def chain_of(modules: Iterable[nn.Module], x: Tensor, target: Tensor) -> list[ChainLayer] | None:
    """The layers of a stack, where every module is one that a compiled step knows and nothing watches it.

    Args:
        modules: Of a network, in order.
        x: Its input.
        target: (B,) labels.

    Returns:
        One entry a layer, each taking as many features as it is given; None where a module, a hook or an
        argument asks for the steps one by one.

    Raises:
        ValueError: If a label is no class.
    """
    if x.dim() != 2 or x.dtype != torch.float32 or len(x) == 0 or not x.is_contiguous():
        return None
    chain: list[ChainLayer] = []
    features, norm, dropout = x.shape[1], 0.0, 0.0
    for module in modules:
        if module._forward_pre_hooks or module._forward_hooks or _CALLED & vars(module).keys():
            return None
        kind = type(module)
        if kind is SpelaLinear:
            entry = _entry(module, norm, dropout)  # type: ignore[arg-type]
            if entry is None or entry.params.weight.shape[1] != features:
                return None
            chain.append(entry)
            features, norm, dropout = entry.params.weight.shape[0], 0.0, 0.0
        elif kind is RowNorm and norm == dropout == 0:
            norm = module.length(features)  # type: ignore[operator]
        elif kind is not nn.Dropout or (module.training and (dropout > 0 or module.p == 1)):
            return None
        elif module.training:
            dropout = module.p  # type: ignore[assignment]
    if not chain or not runs_as_written(x, target):
        return None
    check_target(x, target)
    check_labels(target, min(len(layer.vectors) for layer in chain))
    return chain


def _entry(layer: SpelaLinear, norm: float, dropout: float) -> ChainLayer | None:
    if not owns(layer, "weight", "bias", "slope"):
        return None
    weight, bias, slope = layer.weight, layer.bias, layer.slope
    if not weight.requires_grad or slope is not None:
        return None
    if bias is not None and not bias.requires_grad:
        return None
    settings = Settings(layer.activation, layer.negative_slope, layer.objective, layer.scale)
    if not runs_as_written(weight) or select_backend(weight.device, settings) != "cpu":
        return None
    return ChainLayer(Parameters(weight, bias, None), layer.vectors, settings, norm, dropout)


def steps_a_call(net: nn.Module, batch_size: int) -> int:
    """How many steps of a network of linear layers take a tenth of a second or less: at least 1.

    Args:
        net: Any module.
        batch_size: Samples a step.

    Example:
        >>> steps_a_call(nn.Linear(1000, 1000), 50), steps_a_call(nn.Linear(10, 10), 50)
        (4, 45454)
    """
    numbers = sum(p.numel() for p in net.parameters())
    # Products with all class vectors, and exponentials of the cosines, which take as long as some products.
    numbers += sum(
        module.vectors.numel() + 16 * module.num_classes
        for module in net.modules()
        if isinstance(module, SpelaLinear) and module.objective == "softmax"
    )
    return max(1, _A_CALL // (2 * batch_size * max(1, numbers)))
