"""Forward hooks of layers whose loss or step is one op that does not pass through `forward`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["call_with_hooks", "hooked_input"]


def hooked_input(module: nn.Module, x: Tensor) -> Tensor:
    """`x` as the module's forward pre-hooks leave it, for methods beside `forward` that take its input.

    Args:
        module: Whose pre-hooks to call, in their order.
        x: Its input.

    Example:
        >>> import torch
        >>> layer = nn.Identity()
        >>> handle = layer.register_forward_pre_hook(lambda module, args: -args[0])
        >>> hooked_input(layer, torch.ones(2))
        tensor([-1., -1.])
    """
    if not module._forward_pre_hooks:
        return x
    return _hooked_arguments(module, x)[0]


def _hooked_arguments(module: nn.Module, x: Tensor) -> tuple[Any, ...]:
    args: tuple[Any, ...] = (x,)
    changed: Any
    for key, before in module._forward_pre_hooks.items():
        if key in module._forward_pre_hooks_with_kwargs:
            changed = before(module, args, {})
            args = args if changed is None else changed[0]
        else:
            changed = before(module, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
    return args


def call_with_hooks(
    layer: nn.Module, x: Tensor, run: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """`run(x)` with the layer's forward hooks around it, as nn.Module calls them around `forward`.

    A pre-hook may replace the input and a hook the output that goes on to the next layer; the loss is
    that of the output before any hook. Global hooks, registered with torch for all modules, are not called.

    Args:
        layer: Whose hooks to call.
        x: Its input.
        run: x -> (loss (), y).

    Returns:
        The loss and y, or what a hook returned instead of y.

    Source: torch.nn.Module's call protocol.

    Example:
        >>> import torch
        >>> layer = nn.Identity()
        >>> handle = layer.register_forward_hook(lambda module, args, y: -y)
        >>> call_with_hooks(layer, torch.ones(2), lambda x: (x.sum(), 2 * x))
        (tensor(2.), tensor([-2., -2.]))
    """
    if not layer._forward_pre_hooks and not layer._forward_hooks:
        return run(x)
    args = _hooked_arguments(layer, x)
    changed: Any
    loss, y = run(args[0])
    for key, after in layer._forward_hooks.items():
        if key in layer._forward_hooks_with_kwargs:
            changed = after(layer, args, {}, y)
        else:
            changed = after(layer, args, y)
        y = y if changed is None else changed
    return loss, y
