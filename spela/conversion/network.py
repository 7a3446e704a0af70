"""convert: turns a network into a SpelaSequential of the same weights that learns by layers or by blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spela.conversion.blocks import by_blocks
from spela.conversion.layers import LayerSettings, by_layers
from spela.layers import Frozen
from spela.layers.modes import check_module, output_of, probing
from spela.network import SpelaSequential
from spela.vectors import as_size
from spela_kernels.precision import without_inference

__all__ = ["convert"]


def _wrapped_as(model: nn.Module) -> str:
    """The name under which a wrapper holds the network; empty: it is none."""
    if "_orig_mod" in model._modules:  # torch.compile's
        return "_orig_mod"
    wrappers = nn.DataParallel | nn.parallel.DistributedDataParallel
    return "module" if isinstance(model, wrappers) else ""


@without_inference  # outside: ending that mode lets gradients in again
@torch.no_grad()
def convert(
    model: nn.Module,
    num_classes: int,
    sample_input: Tensor,
    *,
    blocks: int | str | None = None,
    cut: str | Sequence[str] | None = None,
    frozen: nn.Module | None = None,
    objective: str = "softmax",
    scale: float = 20.0,
    conv_scale: float | None = None,
    symmetric_dim: int | None = None,
    generator: torch.Generator | None = None,
    **head: Any,
) -> SpelaSequential:
    """Turn a network into one that learns locally, with the same weights and outputs.

    With `blocks` or `cut`, any network that torch.fx can trace is cut into parts, each of which becomes a
    SpelaBlock; `blocks=1` is backprop with a SPELA head. Parts begin with a layer, and one tensor goes from
    each to the next. With `checkpoint=True` a block stores the input of each of its own parts alone.

    Without them, an nn.Sequential becomes one of layers. A Linear and the activation after it become a
    SpelaLinear; a Conv2d and the BatchNorm2d, ReLU or LeakyReLU and square pool after it a SpelaConv2d.
    Everything else stays a module between the layers, copied, and no longer learns.

    The last module's output is that of `model`; `net(x)` is something else: the cosines of that output to the
    class vectors, in [-1, 1]. Where the last Linear has no activation and `num_classes` outputs, its class
    vectors are the simplex on the output axes, e_k - 1/C, and the cosines order the classes as the logits do:
    `net.predict(x)` is the argmax of `model(x)` until the network is trained. Anywhere else the answers have
    to be learnt. A Linear of zeros, weights and bias, has no direction to start from: its copy is drawn anew,
    unless it is frozen.

    Args:
        model: nn.Sequential, nested ones included; it is copied and stays as it is. Whatever a type
            does not tell is refused: a `forward` of one's own, hooks, computed weights. Any nn.Module of
            one tensor, to be cut into blocks.
        num_classes: C, at least 2.
        sample_input: (B, ...) a batch of the network's input, or the backbone's, which sets the sizes.
        blocks: How many blocks; they are cut so that the one that stores most for its gradient stores as
            little as possible. "layers": as many as the network can be cut into.
        cut: Instead, the names (as in named_modules) of the modules behind which to cut.
        frozen: A backbone to put in front as `spela.Frozen`: not copied, never trained again.
        objective: Local objective of every layer, as in `SpelaLinear`.
        scale: Factor of the cosines of linear layers in `softmax`.
        conv_scale: Without blocks: factor of the scores of convolutions, which are means over kernels and so
            smaller; None: 60.
        symmetric_dim: Without blocks: dimension of the convolutions' class vectors; None: 16.
        generator: Source of class vectors and projections; None: torch's default one.
        **head: Of blocks: readout, hidden, projection, similarity, dropout, checkpoint, ... of `SpelaBlock`.

    Returns:
        A `SpelaSequential`, every module in the mode, on the device and in the dtype it had in `model`.

    Raises:
        TypeError: If `model` is no nn.Sequential (to be cut: no nn.Module), or `num_classes` no integer.
        ValueError: Naming the first module that has no counterpart, that does not do what its type
            says, or whose input does not fit; or where a network cannot be traced or cut.

    Source: this library's own; the projections are those of the `best` recipe of the CNN.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> x = torch.randn(5, 4)
        >>> net = convert(model, 3, x)
        >>> torch.equal(net.predict(x), model(x).argmax(dim=1))
        True
        >>> convert(model, 3, x, blocks=2).local_layers[0].body(x).shape
        torch.Size([5, 16])
    """
    num_classes = as_size("num_classes", num_classes, least=2)
    cuts = blocks is not None or cut is not None
    for name, value in (("conv_scale", conv_scale), ("symmetric_dim", symmetric_dim)):
        if cuts and value is not None:
            raise ValueError(f"`{name}` is of SpelaConv2d, and blocks have none: leave it out")
    if head and not cuts:
        raise TypeError(f"{', '.join(head)}: settings of blocks; say how many `blocks`")
    kind = type(model).__name__
    check_module("model", model)
    inner = _wrapped_as(model)
    if inner:
        raise TypeError(
            f"`model` is inside {kind}: give `model.{inner}`, and wrap the network that comes out"
        )
    if not isinstance(sample_input, Tensor):
        raise TypeError(f"`sample_input` must be a tensor, got {type(sample_input).__name__}")
    if not cuts and not isinstance(model, nn.Sequential):
        raise TypeError(
            f"`model` must be an nn.Sequential, got {kind}: cut it into `blocks`, list its modules in one, "
            "or put it into `frozen`"
        )
    x = sample_input
    if frozen is not None:
        if not isinstance(frozen, nn.Module):
            raise TypeError(f"`frozen` must be an nn.Module, got {type(frozen).__name__}")
        with probing(frozen):
            x = output_of(frozen, x)
    modules: Sequence[nn.Module]
    if cuts:
        head |= {"objective": objective, "scale": scale, "generator": generator}
        modules = by_blocks(model, num_classes, x, blocks, cut, head)
    else:
        conv_scale = 60.0 if conv_scale is None else conv_scale
        symmetric_dim = 16 if symmetric_dim is None else symmetric_dim
        settings = LayerSettings(
            num_classes, objective, scale, conv_scale, symmetric_dim, generator
        )
        modules = by_layers(model, x, settings)
    # Last: it is the caller's own module that stops learning.
    front = [] if frozen is None else [Frozen(frozen)]
    net = SpelaSequential(*front, *modules)
    for module in (net, *front):
        module.training = model.training
    return net
