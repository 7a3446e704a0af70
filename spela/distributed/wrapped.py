"""What a network must be for a parallel one to take its modules over."""

from __future__ import annotations

from spela.layers.plain import departure
from spela.network import SpelaSequential

__all__ = ["refuse_hooks"]


def refuse_hooks(net: SpelaSequential) -> None:
    """Refuse a network with hooks or methods of its own, which its modules do not bring along.

    Raises:
        ValueError: Naming it.

    Example:
        >>> net = SpelaSequential()
        >>> handle = net.register_forward_pre_hook(lambda module, args: None)
        >>> refuse_hooks(net)
        Traceback (most recent call last):
        ValueError: the network has a forward pre-hook, <lambda>, which would be lost: remove it first ...
    """
    why = departure(net, SpelaSequential)
    if why:
        raise ValueError(f"the network {why}")
