"""How a module works: in eval mode inside a `with` block, and never writing into what it is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spela.layers.contract import LocalLayer

__all__ = ["check_module", "in_eval_mode", "output_of", "probing"]


def check_module(name: str, module: object) -> None:
    """Refuse what is no module that could be looked into.

    Args:
        name: The argument's name, for the message.
        module: What was given.

    Raises:
        TypeError: If it is no nn.Module, or one of TorchScript.

    Example:
        >>> check_module("body", nn.ReLU())
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`{name}` must be an nn.Module, got {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(f"`{name}` is of TorchScript: give the module that was scripted or traced")


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
    # What was made in inference mode can be written into there alone, and counts no writes; what is lazy is
    # made by the first call.
    held = [
        (b, b.clone(), b._version) for b in net.buffers() if not is_lazy(b) and not b.is_inference()
    ]
    registered = [(module, dict(module._buffers)) for module in net.modules()]
    try:
        with in_eval_mode(net):
            yield
    finally:
        for module, buffers in registered:  # a forward may put another tensor in a buffer's place
            module._buffers.clear()
            module._buffers.update(buffers)
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
