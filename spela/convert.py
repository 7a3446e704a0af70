"""convert: turns a network into a SpelaSequential of the same weights that learns by layers or by blocks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spela.cutting import cut_network
from spela.layers import Frozen, LocalLayer, RowNorm, SpelaBlock, SpelaConv2d, SpelaLinear
from spela.layers.modes import in_eval_mode
from spela.layers.plain import departure
from spela.network import SpelaSequential
from spela.vectors import as_size

__all__ = ["convert"]

# What only transforms stays as it is. Exact types: a subclass may compute something else.
_ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
)  # fmt: skip
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)
_OTHERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Identity)
_PLAIN = (*_ACTIVATIONS, *_POOLS, *_OTHERS, RowNorm, Frozen)
_ACCEPTED = (
    "Linear, Conv2d, activations, BatchNorm1d/2d, max and average pools, Dropout, Flatten, RowNorm, "
    "nested Sequential; put any other module into `frozen`"
)
_PUT_INTO_FROZEN = "or put the module into `frozen`, which stays whole"


class _Step(NamedTuple):
    """One module of the flattened network."""

    path: str  # as in named_modules
    module: nn.Module
    shape: torch.Size  # of its output for the sample

    def __str__(self) -> str:
        return f"module {self.path!r} ({type(self.module).__name__})"


class _Objective(NamedTuple):
    """What the converted layers learn by."""

    num_classes: int
    name: str
    scale: float
    conv_scale: float
    symmetric_dim: int
    generator: torch.Generator | None


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
    to be learnt. A last Linear of zeros has no direction to start from: its copy is drawn anew.

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
    if blocks is not None or cut is not None:
        for name, value in (("conv_scale", conv_scale), ("symmetric_dim", symmetric_dim)):
            if value is not None:
                raise ValueError(f"`{name}` is of SpelaConv2d, and blocks have none: leave it out")
        head |= {"objective": objective, "scale": scale, "generator": generator}
        return _by_blocks(model, num_classes, sample_input, blocks, cut, frozen, head)
    if head:
        raise TypeError(f"{', '.join(head)}: settings of blocks; say how many `blocks`")
    if not isinstance(model, nn.Sequential):
        raise TypeError(
            f"`model` must be an nn.Sequential, got {type(model).__name__}: cut it into `blocks`, list its "
            "modules in one, or put it into `frozen`"
        )
    settings = _Objective(
        num_classes,
        objective,
        scale,
        60.0 if conv_scale is None else conv_scale,
        16 if symmetric_dim is None else symmetric_dim,
        generator,
    )
    front: list[nn.Module] = []
    if frozen is not None:
        front.append(Frozen(frozen))
        sample_input = front[0](sample_input)
    steps = _trace(model, sample_input)
    learning = [i for i, step in enumerate(steps) if type(step.module) in (nn.Linear, nn.Conv2d)]
    if not learning:
        raise ValueError("`model` has no Linear or Conv2d: nothing in it could learn")
    modules: list[nn.Module] = []
    while steps:
        if type(steps[0].module) is nn.Linear:
            layer, used = _linear(steps, settings)
        elif type(steps[0].module) is nn.Conv2d:
            layer, used = _convolution(steps, settings)
        else:
            layer, used = steps[0].module.requires_grad_(False), 1
        layer.training = steps[0].module.training
        modules.append(layer)
        left, steps = steps, steps[used:]
    if not isinstance(modules[-1], LocalLayer):
        raise ValueError(
            f"{left[0]} comes after the last Linear or Conv2d, whose scores are the answer: nothing "
            "would use it, remove it"
        )
    return _in_mode_of(model, front, modules)


def _in_mode_of(
    model: nn.Module, front: list[nn.Module], modules: Sequence[nn.Module]
) -> SpelaSequential:
    net = SpelaSequential(*front, *modules)
    for module in (net, *front):
        module.training = model.training
    return net


def _by_blocks(
    model: nn.Module,
    num_classes: int,
    x: Tensor,
    blocks: int | str | None,
    cut: str | Sequence[str] | None,
    frozen: nn.Module | None,
    head: dict[str, Any],
) -> SpelaSequential:
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be an nn.Module, got {type(model).__name__}")
    front: list[nn.Module] = [] if frozen is None else [Frozen(frozen)]
    for module in front:
        x = module(x)
    parts = cut_network(model, x, blocks, cut)
    found: list[SpelaBlock] = []
    for part in parts:
        last = part is parts[-1] and _last_module(part)
        own = dict(head)
        if isinstance(last, nn.Linear) and last.out_features == num_classes:
            # The logits are turned themselves: the cosines to these vectors order the classes as they do.
            own |= {"projection": None, "hidden": 0, "vectors": _simplex(num_classes)}
            _draw_if_zero(last, head["generator"])
        body = part
        if head.get("checkpoint"):
            body = nn.Sequential(*cut_network(part, x, "layers"))
            body.training = part.training
        block = SpelaBlock(body, num_classes, x, **own)
        block.training = part.training
        with in_eval_mode(body):
            x = body(x)
        found.append(block)
    return _in_mode_of(model, front, found)


def _simplex(num_classes: int) -> Tensor:
    """Class vectors to which the cosines order the classes as the logits do: e_k - 1/C, not normalised.

    In float64 on the CPU whatever torch's defaults are: half precision would round them.
    """
    return torch.eye(num_classes, dtype=torch.float64, device="cpu") - 1 / num_classes


def _draw_if_zero(linear: nn.Linear, generator: torch.Generator | None) -> None:
    """Weights of zeros give rows without direction, from which nothing is learnt: start as nn.Linear does."""
    if not linear.weight.any():
        bound = linear.in_features**-0.5
        where = "cpu" if generator is None else generator.device
        draw = torch.empty(linear.weight.shape, dtype=torch.float32, device=where)
        linear.weight.copy_(draw.uniform_(-bound, bound, generator=generator))


def _last_module(part: nn.Module) -> nn.Module | None:
    """The module that gives a part's output; None if an operation does."""
    (last,) = part.graph.output_node().all_input_nodes  # type: ignore[union-attr, operator]
    return part.get_submodule(str(last.target)) if last.op == "call_module" else None


def _flatten(model: nn.Sequential, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    why = departure(model, nn.Sequential)
    if why:
        where = f"module {path!r}" if path else "`model`"
        raise ValueError(f"{where} ({type(model).__name__}) {why}; {_PUT_INTO_FROZEN}")
    # Not named_modules: it leaves out a module's second appearance.
    for name, module in model._modules.items():
        inner = f"{path}.{name}" if path else name
        if module is None:
            raise ValueError(f"module {inner!r} is None, which nothing can pass: remove it")
        if isinstance(module, nn.Sequential):
            yield from _flatten(module, inner)
        else:
            yield inner, module


def _trace(model: nn.Sequential, x: Tensor) -> list[_Step]:
    """Copies of the modules in order, with the shapes they give; refuses the first that does not fit."""
    steps: list[_Step] = []
    owners: dict[int, _Step] = {}
    for path, original in _flatten(model):
        step = _Step(path, original, x.shape)
        kinds = (nn.Linear, nn.Conv2d, *_PLAIN)
        kind = next((k for k in kinds if isinstance(original, k)), type(original))
        parametrised = parametrize.is_parametrized(original)
        if type(original) not in kinds and not parametrised:
            raise ValueError(f"{step} has no SPELA counterpart; accepted: {_ACCEPTED}")
        why = departure(original, kind)
        if why:
            raise ValueError(f"{step} {why}; {_PUT_INTO_FROZEN}")
        for parameter in original.parameters():
            if id(parameter) in owners:
                raise ValueError(
                    f"{step} shares a weight with {owners[id(parameter)]}: layers that learn apart "
                    "cannot share one, give it its own"
                )
            owners[id(parameter)] = step
        try:
            module: Any = copy.deepcopy(original).eval()
        except (
            RuntimeError
        ) as error:  # a tensor inside `Frozen` that is the result of a computation
            raise ValueError(f"{step} cannot be copied: {str(error).splitlines()[0]}") from error
        if hasattr(module, "inplace"):
            module.inplace = False  # it would overwrite a layer's output, which its gradient needs
        try:
            out = module(x)
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{step} does not take an input {tuple(x.shape)}: {reason}") from error
        if not isinstance(out, Tensor):
            raise ValueError(
                f"{step} returns more than a tensor: build it with return_indices=False"
            )
        if type(original) in (nn.Linear, nn.Conv2d):
            _check_layer(step, original, x)
        steps.append(_Step(path, module.train(original.training), out.shape))
        x = out
    return steps


def _check_layer(step: _Step, module: Any, x: Tensor) -> None:
    if isinstance(module, nn.Conv2d):
        if x.dim() != 4:
            raise ValueError(f"{step} must get a batch (B, C, H, W), got {tuple(x.shape)}")
        if module.padding_mode != "zeros":
            raise ValueError(f"{step} pads by {module.padding_mode!r}; accepted: 'zeros'")
    elif x.dim() != 2:
        raise ValueError(f"{step} must get rows (B, I), got {tuple(x.shape)}: put a Flatten before")
    elif module.out_features < 2:
        raise ValueError(
            f"{step} has one output: in one dimension no direction can turn; give it num_classes"
        )


def _linear(steps: list[_Step], settings: _Objective) -> tuple[nn.Module, int]:
    """The SpelaLinear of the first module, with the next one's activation where it has that one."""
    source: Any = steps[0].module
    activation, slope, used = None, 0.0, 1
    if len(steps) > 1:
        activation, slope = _activation(steps[1].module)
        used = 1 if activation is None else 2
    activation = activation or "identity"
    vectors: str | Tensor = "symmetric"
    answers = used == len(steps) and activation == "identity"
    if answers and source.out_features == settings.num_classes:
        vectors = _simplex(settings.num_classes)
    layer = SpelaLinear(
        source.in_features,
        source.out_features,
        settings.num_classes,
        bias=source.bias is not None,
        activation=activation,
        negative_slope=slope,
        objective=settings.name,
        scale=settings.scale,
        vectors=vectors,
        generator=settings.generator,
        device=source.weight.device,
        dtype=source.weight.dtype,
    )
    _draw_if_zero(source, settings.generator)
    _copy_parameters(source, layer)
    if layer.slope is not None:
        layer.slope.requires_grad_(steps[1].module.get_parameter("weight").requires_grad)
    return layer, used


def _activation(module: nn.Module) -> tuple[str | None, float]:
    """Its name among SPELA's activations, None if it is not one of them, and its slope."""
    slope, kind = 0.0, type(module)
    found: Any = module
    # A falling piece has no inverse: phi' could not be told from the sign of y.
    if kind is nn.LeakyReLU and found.negative_slope >= 0:
        return "leaky_relu", float(found.negative_slope)
    if kind is nn.PReLU and found.num_parameters == 1:
        return "prelu", float(found.weight)
    simple = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Identity: "identity"}
    if kind is nn.ELU and found.alpha == 1:
        return "elu", slope
    if kind is nn.GELU and found.approximate == "none":
        return "gelu", slope
    return simple.get(kind), slope


def _convolution(steps: list[_Step], settings: _Objective) -> tuple[nn.Module, int]:
    """The SpelaConv2d of the first module and of the batch norm, LeakyReLU and pool right after it."""
    source: Any = steps[0].module
    following = [step.module for step in steps[1:]]
    norm: Any = None
    if following and type(following[0]) is nn.BatchNorm2d and following[0].affine:
        norm = following.pop(0)
    negative_slope = 1.0  # LeakyReLU with this slope changes nothing
    if following:
        name, slope = _activation(following[0])
        if name in ("relu", "leaky_relu", "identity"):
            negative_slope = 1.0 if name == "identity" else slope
            following.pop(0)
    pool, size = _square_pool(following[0]) if following else (None, 1)
    if pool is not None:
        following.pop(0)
    used = len(steps) - len(following)
    layer = SpelaConv2d(
        source.in_channels,
        source.out_channels,
        source.kernel_size,
        settings.num_classes,
        output_size=(steps[used - 1].shape[2], steps[used - 1].shape[3]),
        stride=source.stride,
        padding=source.padding,
        dilation=source.dilation,
        groups=source.groups,
        bias=source.bias is not None,
        symmetric_dim=settings.symmetric_dim,
        projection_std=0.1,
        grouping=settings.num_classes,
        batch_norm=norm is not None,
        pool=pool,
        pool_size=size,
        negative_slope=negative_slope,
        objective=settings.name,
        scale=settings.conv_scale,
        generator=settings.generator,
        device=source.weight.device,
        dtype=source.weight.dtype,
    )
    _copy_parameters(source, layer)
    layer.norm = norm
    return layer, used


def _square_pool(module: nn.Module) -> tuple[str | None, int]:
    """max or avg and the window, or None where SpelaConv2d has no such pool."""
    if type(module) not in (nn.MaxPool2d, nn.AvgPool2d):
        return None, 1
    found: Any = module

    def same(value: int | tuple[int, ...]) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else (value, value)

    window = same(found.kernel_size)
    plain = same(found.stride) == window and same(found.padding) == (0, 0) and not found.ceil_mode
    plain = plain and window[0] == window[1] and same(getattr(found, "dilation", 1)) == (1, 1)
    if not plain or getattr(found, "divisor_override", None) is not None:
        return None, 1
    return ("max" if type(module) is nn.MaxPool2d else "avg"), window[0]


def _copy_parameters(source: Any, layer: Any) -> None:
    for name in ("weight", "bias"):
        parameter = getattr(source, name)
        if parameter is not None:
            getattr(layer, name).copy_(parameter)
            getattr(layer, name).requires_grad_(parameter.requires_grad)
