"""Whether a module computes what its type says, and which modules a network runs, by name."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

__all__ = ["departure", "parts_of"]

# Of nn.Sequential and of layers: what decides what calling the module gives, and how it learns.
_CALLED = (
    "__call__", "_call_impl", "_wrapped_call_impl", "forward", "__iter__", "_conv_forward", "scores",
)  # fmt: skip
_LEARNS = ("local_loss", "local_step")
_HOOKS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
}


def departure(module: nn.Module, kind: type[nn.Module], *, learns: bool = True) -> str:
    """Why calling `module` may give something else than its parameters under `kind`'s formula do.

    Args:
        module: An instance of `kind`, of a subclass, or of a parametrised one.
        kind: Whose behaviour is expected.
        learns: Whether how it learns counts, too.

    Returns:
        The end of a sentence about the module, with what to do; empty: it behaves as `kind`.

    Example:
        >>> layer = nn.Linear(4, 3)
        >>> departure(layer, nn.Linear)
        ''
        >>> layer.forward = lambda x: -x
        >>> departure(layer, nn.Linear)
        "has a `forward` of its own: only Linear's is known here"
    """
    if parametrize.is_parametrized(module):
        names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        return (
            f"computes its {names} from other parameters: make it plain first "
            "(torch.nn.utils.parametrize.remove_parametrizations)"
        )
    for attribute, word in _HOOKS.items():
        for hook in getattr(module, attribute).values():
            name = getattr(hook, "__name__", type(hook).__name__)
            return (
                f"has a {word}, {name}, which would be lost: remove it first (weight norm, spectral "
                "norm and pruning have functions for it in torch.nn.utils)"
            )
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter._backward_hooks:
            return f"has a gradient hook on its {name}, which would be lost: remove it first"
    for name in (*_CALLED, *(_LEARNS if learns else ())):
        own = name in vars(module) or getattr(type(module), name, None) is not getattr(
            kind, name, None
        )
        if own:
            return f"has a `{name}` of its own: only {kind.__name__}'s is known here"
    computed = {"weight", "bias"} & set(vars(module))  # where nn.Module has no parameter
    if computed:
        return f"has a {computed.pop()} that is no parameter but computed: make it an nn.Parameter first"
    return ""


def parts_of(net: nn.Sequential) -> dict[str, nn.Module]:
    """The modules by name, one that runs twice under both of its names, which `named_children` leaves out.

    Example:
        >>> tanh = nn.Tanh()
        >>> list(parts_of(nn.Sequential(tanh, nn.Flatten(), tanh)))
        ['0', '1', '2']
    """
    return {name: module for name, module in net._modules.items() if module is not None}
