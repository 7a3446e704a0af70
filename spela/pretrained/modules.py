"""Modules as JSON values and back: a name of the table and its constructor's arguments, no code.

A container's entry holds entries of what it contains. Tensors are no part of it, but for their dtype; modules
are built on the meta device, so that nothing is allocated for sizes before tensors are seen to have them.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spela.layers import (
    BinaryWeight,
    Frozen,
    LocalLayer,
    PatchWhitening,
    RowNorm,
    SpelaBlock,
    SpelaConv2d,
    SpelaLinear,
    Standardize,
    with_binary_weight,
)
from spela.layers.plain import departure, parts_of
from spela.vectors import decode_groups

__all__ = ["DTYPES", "build_module", "describe_module", "shapes_of"]

_KINDS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(SpelaLinear, SpelaConv2d, SpelaBlock, RowNorm, Standardize, PatchWhitening, Frozen, nn.Sequential),
        *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
        *(nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout),
        *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.ZeroPad2d, nn.ConstantPad2d),
        *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
        *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.SiLU, nn.GELU, nn.Mish),
        *(nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Softplus, nn.Softmax, nn.LocalResponseNorm),
        *(nn.PixelShuffle, nn.ChannelShuffle),
    )
}  # fmt: skip
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8)
}  # fmt: skip
_FLOATS = ("float16", "bfloat16", "float32", "float64")
# What a constructor takes that is no setting.
_FACTORY = ("self", "device", "dtype", "generator")
_GIVEN = "given"  # vectors or groups that a user gave: the tensors hold them
_BINARY = "binary_weight"
# Of the batch norms that a constructor leaves as torch's: `_norms`.
_NORM = ("eps", "momentum")
# Arguments that a block's constructor keeps under other names.
_BLOCK = {
    "channels": lambda block: _outputs(block.head.convolution),
    "hidden": lambda block: _outputs(block.head.hidden),
    "projection": lambda block: None if block.projection is None else block.projection.shape[2],
    "similarity": lambda block: block.similarity_weight,
    "dropout": lambda block: block.dropout.p,
}


def shapes_of(module: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of everything in a module's state, by name.

    Example:
        >>> shapes_of(nn.Linear(2, 3, bias=False))
        {'weight': ((3, 2), torch.float32)}
    """
    return {name: (tuple(t.shape), t.dtype) for name, t in module.state_dict().items()}


def describe_module(module: nn.Module, name: str) -> dict[str, Any]:
    """A module as JSON values, from which `build_module` makes one with the same settings.

    Args:
        module: Of the table's classes, and made of such.
        name: Its place in the network, for messages.

    Returns:
        The entry.

    Raises:
        ValueError: If it cannot be described, or is not as its constructor makes it.

    Example:
        >>> describe_module(RowNorm("unit"), "1")
        {'type': 'RowNorm', 'arguments': {'norm': 'unit'}}
    """
    entry = _described(module, name)
    built = build_module(entry, module.state_dict())
    if shapes_of(built) != shapes_of(module):
        differ = [k for k, _ in shapes_of(module).items() ^ shapes_of(built).items()]
        raise _refused(
            module, name, f"has other tensors than its constructor makes ({sorted(differ)[0]})"
        )
    return entry


def _refused(module: nn.Module, name: str, why: str) -> ValueError:
    return ValueError(
        f"module {name!r} ({type(module).__name__}) {why}, so config.json cannot describe it: save the "
        "weights alone, safetensors.torch.save_file(net.state_dict(), FILE), and build the network in code"
    )


def _described(module: nn.Module, name: str) -> dict[str, Any]:
    kind, binary = type(module), False
    if parametrize.is_parametrized(module) and isinstance(module, SpelaLinear):
        found = dict(module.parametrizations.items())  # type: ignore[operator, union-attr]
        binary = [*found] == ["weight"] and [type(m) for m in found["weight"]] == [BinaryWeight]
        kind = SpelaLinear if binary else kind
    if _KINDS.get(kind.__name__) is not kind:
        known = "a class that is neither this library's nor one of torch's plain layers"
        raise _refused(module, name, f"is of {known}")
    if not binary and (departs := departure(module, kind)):
        raise _refused(module, name, departs)
    if isinstance(module, LocalLayer) and module.num_classes < 2:
        raise _refused(module, name, "has met one class so far, of a stream")
    if isinstance(module, SpelaConv2d) and _met_fewer(module):
        raise _refused(module, name, "groups more classes than it has met so far, of a stream")
    entry: dict[str, Any] = {"type": kind.__name__}
    if isinstance(module, nn.Sequential):
        parts = parts_of(module).items()
        return entry | {"modules": {key: _described(m, f"{name}.{key}") for key, m in parts}}
    if isinstance(module, Frozen):
        return entry | {"module": _described(module.module, f"{name}.module")}
    entry["arguments"] = {
        key: _plain(value, module, name) for key, value in _arguments(module, kind).items()
    }
    for path, norm in _norms(module).items():
        if type(norm) is not nn.BatchNorm2d or departure(norm, nn.BatchNorm2d):
            raise _refused(module, name, f"has a {path} that is no plain nn.BatchNorm2d")
        if norm.running_mean is not None and not norm.track_running_stats:
            raise _refused(
                module, name, f"has a {path} whose statistics stay (track_running_stats)"
            )
        entry[path] = {key: getattr(norm, key) for key in _NORM}
    if isinstance(module, SpelaBlock):
        entry["body"] = _described(module.body, f"{name}.body")
        entry["sample"] = {
            "shape": list(module.sample_shape),
            "dtype": _dtype_name(module.sample_dtype, module, name),
        }
        return entry
    dtypes = {t.dtype for t in module.state_dict().values() if t.is_floating_point()}
    if len(dtypes) > 1:
        raise _refused(module, name, "has tensors of several dtypes")
    if dtypes:
        entry["dtype"] = _dtype_name(dtypes.pop(), module, name)
    return entry | ({_BINARY: True} if binary else {})


def _norms(module: nn.Module) -> dict[str, nn.Module]:
    """A layer's own batch norms by path."""
    if isinstance(module, SpelaConv2d):
        return {} if module.norm is None else {"norm": module.norm}
    if not isinstance(module, SpelaBlock):
        return {}
    layers = {"convolution": module.head.convolution, "hidden": module.head.hidden}
    return {f"head.{k}.norm": layer.norm for k, layer in layers.items() if layer is not None}


def _met_fewer(layer: SpelaConv2d) -> bool:
    """Whether a stream shows a layer fewer classes than its kernels have groups to draw."""
    asked = layer._group_source
    most = (
        asked[1] - 1 if isinstance(asked, tuple) else asked
    )  # low, and the first that is too many
    return isinstance(most, int) and most > layer.num_classes


def _dtype_name(dtype: torch.dtype, module: nn.Module, name: str) -> str:
    for known, value in DTYPES.items():
        if value == dtype:
            return known
    raise _refused(module, name, f"is of {dtype}")


def _arguments(module: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    """What the constructor would be given, without torch's own defaults: older ones know the rest."""
    values: dict[str, Any] = {}
    for key, parameter in _parameters(kind).items():
        if isinstance(module, SpelaBlock) and key in _BLOCK:
            value = _BLOCK[key](module)
        elif key == "vectors":
            value = module._vector_source
            value = _GIVEN if isinstance(value, Tensor) else value
        elif key == "grouping":
            value = module._group_source
            value = _GIVEN if isinstance(value, Tensor) else value
        elif key == "batch_norm":
            value = module.norm is not None
        elif key == "bias":
            value = getattr(module, "bias", None) is not None
        else:
            value = getattr(module, key)
        is_torchs = kind.__module__.startswith("torch.")
        if not (is_torchs and parameter.default is value):
            values[key] = value
    return values


def _parameters(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The settings that a constructor takes."""
    return {
        key: parameter
        for key, parameter in inspect.signature(kind.__init__).parameters.items()
        if key not in (*_FACTORY, "body", "sample_input")
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def _outputs(layer: Any) -> int:
    return 0 if layer is None else len(layer.weight)


def _plain(value: Any, module: nn.Module, name: str) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, tuple | list):
        return [_plain(one, module, name) for one in value]
    if hasattr(value, "item"):  # NumPy's numbers
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise _refused(module, name, f"has a setting of type {type(value).__name__}")


def build_module(entry: Any, tensors: Mapping[str, Tensor], prefix: str = "") -> nn.Module:
    """The module of an entry, on the meta device.

    Args:
        entry: From `describe_module`, or from anybody's file.
        tensors: A state whose vectors and groups those are that the entry says are given.
        prefix: Of the module's names in it.

    Returns:
        A module of one of the table's classes.

    Raises:
        ValueError: If the entry is none.
        Exception: What a constructor says of arguments that do not fit.

    Example:
        >>> build_module({"type": "Linear", "arguments": {"in_features": 2, "out_features": 3}}, {})
        Linear(in_features=2, out_features=3, bias=True)
    """
    kind = _KINDS.get(_field(entry, "type", str))
    if kind is None:
        raise ValueError(f"unknown module {entry['type']!r}")
    if kind is nn.Sequential:
        parts = _field(entry, "modules", dict)
        return nn.Sequential(
            OrderedDict((k, build_module(m, tensors, f"{prefix}{k}.")) for k, m in parts.items())
        )
    if kind is Frozen:
        return Frozen(build_module(_field(entry, "module", dict), tensors, f"{prefix}module."))
    known = _parameters(kind)
    given = {k: _argument(v) for k, v in _field(entry, "arguments", dict).items()}
    unknown = sorted(given.keys() - known.keys())
    if unknown:
        raise ValueError(f"{kind.__name__} has no argument {unknown[0]!r}")
    if given.get("vectors") == _GIVEN:
        given["vectors"] = tensors[f"{prefix}vectors"]
    if given.get("grouping") == _GIVEN:
        given["grouping"] = decode_groups(tensors[f"{prefix}group_codes"].cpu())
    if kind is SpelaBlock:
        body = build_module(_field(entry, "body", dict), tensors, f"{prefix}body.")
        sample = _field(entry, "sample", dict)
        shape, dtype = _argument(sample["shape"]), DTYPES[sample["dtype"]]
        given["sample_input"] = torch.empty(2, *shape, dtype=dtype, device="meta")
        return _with_norms(SpelaBlock(body, **given), entry)
    if "dtype" in inspect.signature(kind.__init__).parameters:
        dtype_name = entry.get("dtype", "float32")
        if dtype_name not in _FLOATS:
            raise ValueError(f"{kind.__name__} cannot be of dtype {dtype_name!r}")
        given |= {"device": "meta", "dtype": DTYPES[dtype_name]}
    module = _with_norms(kind(**given), entry)
    return with_binary_weight(module) if entry.get(_BINARY) is True else module  # type: ignore[type-var]


def _with_norms(module: nn.Module, entry: dict[str, Any]) -> nn.Module:
    """The module, its batch norms as the entry has them."""
    for path, norm in _norms(module).items():
        for key, value in entry.get(path, {}).items():
            sound = isinstance(value, int | float | None) and not isinstance(value, bool)
            if key not in _NORM or not sound:
                raise ValueError(f"a batch norm has no sound {key!r}")
            setattr(norm, key, value)
    return module


def _field(entry: Any, key: str, kind: type) -> Any:
    if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
        raise ValueError(f"a module has no sound {key!r}")
    return entry[key]


def _argument(value: Any) -> Any:
    """A JSON value as constructors take it."""
    if isinstance(value, list):
        return tuple(_argument(one) for one in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{value!r} is no setting")
