"""Learning rates by layer, as parameter groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from spela.layers.contract import LocalLayer
from spela.layers.in_training import awake_parts

__all__ = ["layer_groups"]


def layer_groups(net: nn.Module, lrs: Sequence[float | None]) -> list[dict[str, Any]]:
    """Parameter groups that give each SPELA layer a learning rate of its own.

    Args:
        net: A network of SPELA layers; parameters outside of them are in no group.
        lrs: One learning rate a SPELA layer, first to last; None leaves a layer to the optimizer's
            own `lr`, 0 keeps it as it is (freezing it saves the work, too).

    Returns:
        Groups for any torch optimizer, `LocalSGD` and `LocalAdam` among them.

    Raises:
        ValueError: If the numbers of rates and layers differ.

    Example:
        >>> from spela.layers import SpelaLinear
        >>> from spela.optim import LocalAdam
        >>> net = nn.Sequential(SpelaLinear(4, 8, 3), SpelaLinear(8, 8, 3))
        >>> optimizer = LocalAdam(layer_groups(net, [1e-4, None]), lr=1e-3)
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.0001, 0.001]
    """
    layers = [module for module in awake_parts(net) if isinstance(module, LocalLayer)]
    if len(layers) != len(lrs):
        raise ValueError(
            f"`lrs` has {len(lrs)} learning rates, the network {len(layers)} SPELA layers: give one each"
        )
    return [
        {"params": list(layer.parameters()), **({} if lr is None else {"lr": lr})}
        for layer, lr in zip(layers, lrs, strict=True)
    ]
