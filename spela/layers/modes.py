"""How modules work: in eval mode inside a `with`, writing into no input, and what training does beside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from spela.layers.contract import LocalLayer
from spela.layers.frozen import Frozen

__all__ = ["awake_parts", "batch_norms", "drawing_parts", "in_eval_mode", "output_of", "probing"]


@contextmanager
def in_eval_mode(net: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module is in its own mode again afterwards.

    Args:
        net: Any module.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2).eval(), nn.Dropout())
        >>> with in_eval_mode(net):
        ...     net[1].training
        False
        >>> net.training, net[0].training, net[1].training
        (True, False, True)
    """
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def probing(net: nn.Module) -> Iterator[None]:
    """Eval mode inside, and afterwards every buffer has its value again, in case `forward` writes into one.

    For samples that only show what a module is: its shapes, its costs, whether it can be cut.

    Example:
        >>> class Counted(nn.Identity):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.register_buffer("calls", torch.tensor(0))
        ...
        ...     def forward(self, x: Tensor) -> Tensor:
        ...         self.calls.add_(1)
        ...         return x
        >>> counted = Counted()
        >>> with probing(counted):
        ...     _ = counted(torch.ones(1))
        >>> counted.calls
        tensor(0)
    """
    # What was made in inference mode can be written into there alone, and counts no writes.
    held = [(b, b.clone(), b._version) for b in net.buffers() if not b.is_inference()]
    try:
        with in_eval_mode(net):
            yield
    finally:
        with torch.no_grad():
            for buffer, value, version in held:
                if buffer._version != version:  # a graph may need the others as they are
                    buffer.copy_(value)


def output_of(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)`, with x left as it is: a copy is given to a module in which something works in place.

    x may be the caller's batch, or a view of it, or what the layer before needs for its gradient. Layers that
    learn never write into their input.

    Example:
        >>> import torch
        >>> x = torch.tensor([-1.0])
        >>> output_of(nn.ReLU(inplace=True), x), x
        (tensor([0.]), tensor([-1.]))
    """
    if isinstance(module, LocalLayer):
        return module(x)
    in_place = any(getattr(part, "inplace", False) for part in module.modules())
    return module(x.clone() if in_place else x)


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
