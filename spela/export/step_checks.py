"""What must hold of a network for an exported training step to do all that `net.local_step` does."""

from __future__ import annotations

from torch import nn

from spela.layers import LocalLayer, SpelaConv2d, SpelaLinear
from spela.layers.in_training import batch_norms, drawing_parts
from spela.layers.plain import departure, parts_of
from spela.network import SpelaSequential
from spela_kernels.linear import Parameters

__all__ = ["check_network"]

# The layers whose gradients are written out here, and what they are trained through.
_TRAINED: dict[type[LocalLayer], set[str]] = {
    SpelaLinear: set(Parameters._fields),
    SpelaConv2d: {"weight", "bias", "norm.weight", "norm.bias", "projection"},
}


def check_network(net: nn.Module) -> SpelaSequential:
    """The network, if its training step can be written out in full.

    Raises:
        ValueError: If it is no SPELA network, has a layer without such a step, or something in it (a hook, a
            `forward` of its own, a dropout inside a module) would be left out.

    Example:
        >>> check_network(SpelaSequential(SpelaLinear(4, 8, 3, bias=False)))[0].bias is None
        True
    """
    if not isinstance(net, SpelaSequential):
        raise ValueError(
            f"only a SPELA network has a training step without autograd, got {type(net).__name__}: "
            "export its inference"
        )
    why = departure(net, SpelaSequential)
    if why:
        raise ValueError(f"`net` ({type(net).__name__}) {why}")
    for name, module in parts_of(net).items():
        kind = next((kind for kind in _TRAINED if isinstance(module, kind)), None)
        if isinstance(module, LocalLayer) and kind is None:
            raise ValueError(
                f"layer {name} is a {type(module).__name__}: only the training step of "
                f"{' and '.join(known.__name__ for known in _TRAINED)} can be exported; export the "
                "network's inference"
            )
        if kind is not None:
            own = {key for key, _ in module.named_parameters()} - _TRAINED[kind]
            if own:
                raise ValueError(
                    f"layer {name} is trained through {', '.join(sorted(own))}: only plain weights, biases, "
                    "slopes and projections have an exportable step"
                )
        why = _left_out(module)
        if why:
            raise ValueError(f"module {name} ({type(module).__name__}) {why}")
    for _ in net._checked():
        pass  # what `local_step` refuses
    return net


def _left_out(module: nn.Module) -> str:
    """What of a module's behaviour in training the exported step would not have; empty: nothing."""
    for kind in (*_TRAINED, nn.Dropout):
        if isinstance(module, kind):
            why = departure(module, kind)
            return why or (_conv_left_out(module) if isinstance(module, SpelaConv2d) else "")
    other = next((type(m).__name__ for m in drawing_parts(module)), "")
    if other:
        return f"draws by {other}: list an nn.Dropout in the network itself instead"
    norm = next((type(m).__name__ for m in batch_norms(module)), "")
    return norm and f"has a {norm}, of whose batches it learns in training: wrap it in Frozen"


def _conv_left_out(layer: SpelaConv2d) -> str:
    if layer.weight.element_size() < 4:
        return f"is in {layer.weight.dtype}: convolutions need 32 bits or more, call float() first"
    norm = layer.norm
    if norm is None:
        return ""
    if not (isinstance(norm, nn.BatchNorm2d) and norm.affine):
        return f"has {norm} as its norm: only an nn.BatchNorm2d with weight and bias is known here"
    if norm.running_mean is not None and not norm.track_running_stats:
        return "has a batch norm whose statistics stay: set its track_running_stats"
    why = departure(norm, nn.BatchNorm2d)
    return why and f"has a batch norm that {why}"
