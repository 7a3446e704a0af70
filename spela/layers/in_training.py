"""Which modules do in training what they do not do in eval mode: draw numbers, learn of a whole batch."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from spela.layers.frozen import Frozen

__all__ = ["awake_parts", "batch_norms", "drawing_parts"]


def awake_parts(net: nn.Module) -> list[nn.Module]:
    """The modules that `net.train()` brings into training mode: none of what is frozen.

    Example:
        >>> awake_parts(Frozen(nn.Dropout()))
        []
    """
    frozen = {part for m in net.modules() if isinstance(m, Frozen) for part in m.modules()}
    return [module for module in net.modules() if module not in frozen]


def drawing_parts(net: nn.Module) -> list[nn.Module]:
    """The modules, of torch's own classes, that draw random numbers in training.

    Example:
        >>> drawing_parts(nn.Sequential(nn.Dropout(0.0), nn.RReLU(), Frozen(nn.Dropout())))
        [RReLU(lower=0.125, upper=0.3333333333333333)]
    """
    return [module for module in awake_parts(net) if _draws(module)]


def _draws(module: nn.Module) -> bool:
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return module.dropout > 0
    return isinstance(module, nn.RReLU | nn.FractionalMaxPool2d | nn.FractionalMaxPool3d)


def batch_norms(net: nn.Module) -> list[nn.Module]:
    """The modules, of torch's own classes, that compute or remember something of a whole batch in training.

    Example:
        >>> norm = nn.InstanceNorm1d(2, track_running_stats=True)
        >>> len(batch_norms(nn.Sequential(nn.BatchNorm1d(2), nn.InstanceNorm1d(2), Frozen(norm))))
        1
    """
    return [
        module
        for module in awake_parts(net)
        if isinstance(module, _BatchNorm)
        or (isinstance(module, _InstanceNorm) and module.track_running_stats)
    ]
