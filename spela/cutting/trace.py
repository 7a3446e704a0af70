"""The operations of a network in order, by torch.fx, and which of their results a head can read."""

from __future__ import annotations

import inspect
import random
import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from spela.layers.modes import probing
from spela.layers.readout import check_readable, other_batches

__all__ = ["NetworkTracer", "is_readable", "note_readable", "traced"]

_READABLE = "readable"
_DEVICES = ("cpu", "cuda")  # that autocast is turned on and off for


class NetworkTracer(fx.Tracer):
    """Keeps torch's modules whole, those without modules inside, and those with a say in how they train.

    A part that is unpickled is traced again, by this class without arguments.

    Args:
        whole: Paths of further modules to keep whole.
    """

    # Else what a forward does with a buffer alone is done now, once, and is no operation of the graph.
    proxy_buffer_attributes = True

    def __init__(self, whole: Collection[str] = ()) -> None:
        super().__init__()
        self.whole = whole
        self.autocast = _autocast()
        self.failed = ""  # the innermost module that cannot be traced into

    def create_node(self, *call: Any, **named: Any) -> fx.Node:
        if _autocast() != self.autocast:
            raise ValueError("its forward turns autocast on or off, which tracing would lose")
        return super().create_node(*call, **named)

    def call_module(self, m: nn.Module, *call: Any) -> Any:
        try:
            return super().call_module(m, *call)
        except Exception:
            path = self.path_of_module(m)
            if not self.is_leaf_module(m, path):
                self.failed = self.failed or path
            raise

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        if (
            path in self.whole
            or not module._modules
            or "training" in type(module).forward.__code__.co_names
            or type(module).train is not nn.Module.train
        ):
            return True
        own = type(module).__module__.startswith("torch.nn")
        return own and not isinstance(module, nn.Sequential)


def traced(model: nn.Module) -> fx.Graph:
    """The network's operations, which must be the same in training and evaluation.

    A module inside that cannot be traced, as where its way depends on values, is one operation.

    Raises:
        ValueError: If the network cannot be traced, or something of it would be lost.
    """
    modes = (not model.training, model.training)
    whole: set[str] = set()
    known = -1
    while known < len(whole):  # until both modes keep the same modules whole
        known = len(whole)
        found = [_trace(model, training, whole) for training in modes]
        with _autocast_on():  # only where it is on is it seen to be turned off
            _trace(model, model.training, whole)
    graphs, constants = zip(*found, strict=True)
    codes = [graph.python_code("self").src for graph in graphs]
    if codes[0] != codes[1]:
        lines = zip(*(code.splitlines() for code in codes), strict=False)
        line = next((b.strip() for a, b in lines if a != b), codes[1].splitlines()[-1].strip())
        raise ValueError(
            f"{type(model).__name__} does other things in training than in evaluation, at {line!r}: let "
            "a module of its own do that (nn.Dropout for functional dropout)"
        )
    for name, value in constants[1].items():
        if not torch.equal(value, constants[0][name]):
            raise ValueError(
                f"{type(model).__name__} makes a tensor of other values at every call, {tuple(value.shape)}, "
                "which tracing would keep: let a module of its own do that"
            )
        setattr(model, name, value)
    graph = graphs[1]
    inputs = [node for node in graph.nodes if node.op == "placeholder" and node.users]
    if len(inputs) != 1:
        raise ValueError(
            f"{type(model).__name__} takes {len(inputs)} inputs: blocks take one tensor"
        )
    _check_hooks(model, graph)
    return graph


def _autocast() -> list[bool]:
    return [torch.is_autocast_enabled(device) for device in _DEVICES]


@contextmanager
def _autocast_on() -> Iterator[None]:
    """Autocast's switches on inside, of this thread: nothing is computed where a network is traced."""
    before = _autocast()
    for device in _DEVICES:
        torch.set_autocast_enabled(device, True)
    try:
        yield
    finally:
        for device, enabled in zip(_DEVICES, before, strict=True):
            torch.set_autocast_enabled(device, enabled)


def _trace(model: nn.Module, training: bool, whole: set[str]) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The operations in one mode, and the tensors that they make of nothing, by name.

    Modules inside that cannot be traced join those that are kept whole.
    """
    given = inspect.signature(model.forward).parameters
    # The first is the input, with a default or without.
    others = list(given.items())[1:]
    defaults = {name: p.default for name, p in others if p.default is not p.empty}
    held = {name: (value, value._version) for name, value in _tensors(model)}
    while True:
        states = {module: dict(vars(module)) for module in model.modules()}
        draws = random.getstate(), np.random.get_state()
        tracer = NetworkTracer(whole)
        model.train(training)
        for module in states:  # they would be called with proxies: `_check_hooks`
            vars(module).update(_forward_hooks=OrderedDict(), _forward_pre_hooks=OrderedDict())
        try:
            graph = tracer.trace(model, concrete_args=defaults)
        except Exception as error:  # whatever the model's own code makes of a proxy
            if not tracer.failed or tracer.failed in whole:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise ValueError(
                    f"{type(model).__name__} cannot be traced ({reason}): write it as an nn.Sequential, or "
                    "make the blocks by hand with SpelaBlock"
                ) from error
            whole.add(tracer.failed)
        else:
            _check_written(model, held)
            _check_draws(model, draws)
            made = {name: vars(model)[name] for name in vars(model).keys() - states[model].keys()}
            constants = {name: value for name, value in made.items() if isinstance(value, Tensor)}
            return _without(defaults, graph), constants
        finally:  # what forward noted on the modules is of proxies
            for module, state in states.items():
                vars(module).clear()
                vars(module).update(state)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers, and tensors that are plain attributes, by the names in the model."""
    for path, module in model.named_modules():
        for name, value in (*vars(module).items(), *module._buffers.items()):
            if isinstance(value, Tensor):
                yield f"{path}.{name}".lstrip("."), value


def _check_written(model: nn.Module, held: dict[str, tuple[Tensor, int]]) -> None:
    """Refuse a forward that sets a tensor, or changes one that is no buffer: the graph has no such step."""
    now = dict(_tensors(model))
    for name, (value, version) in held.items():
        if now.get(name) is not value or value._version != version:
            raise ValueError(
                f"forward of {type(model).__name__} sets or changes {name!r}, lost in tracing: change a "
                "buffer by an operation in place (add_, copy_), or in a module without modules inside"
            )


def _check_draws(model: nn.Module, before: tuple[Any, Any]) -> None:
    """Refuse a forward that draws numbers, which the graph would keep; the generators are put back."""
    numbers = [
        [np.asarray(part).tobytes() for part in s] for s in (np.random.get_state(), before[1])
    ]
    if random.getstate() != before[0] or numbers[0] != numbers[1]:
        random.setstate(before[0])
        np.random.set_state(before[1])
        raise ValueError(
            f"forward of {type(model).__name__} draws from Python's or NumPy's generator, and tracing would "
            "keep what it drew: draw in a module without modules inside"
        )


def _check_hooks(model: nn.Module, graph: fx.Graph) -> None:
    """Refuse hooks of modules that are dissolved into operations: nobody would call them."""
    whole = [f"{node.target}." for node in graph.nodes if node.op == "call_module"]
    for name, module in model.named_modules():
        if any(f"{name}.".startswith(path) for path in whole):
            continue
        for word, hooks in (
            ("forward", (module._forward_hooks, module._forward_pre_hooks)),
            ("backward", (module._backward_hooks, module._backward_pre_hooks)),
        ):
            if any(hooks):
                where = f"module {name!r}" if name else "the network"
                raise ValueError(
                    f"{where} ({type(module).__name__}) has a {word} hook, which is lost where the network "
                    "is cut: remove it, or put it on the modules inside"
                )


def _without(arguments: Iterable[str], graph: fx.Graph) -> fx.Graph:
    """The graph without arguments that were traced at their defaults, and the assertions that they are."""

    names = set(arguments)

    def erase(node: fx.Node) -> None:
        for user in list(node.users):
            erase(user)
        graph.erase_node(node)

    for node in list(graph.nodes):
        # The tracer numbers them: mask becomes mask_1.
        if node.op == "placeholder" and re.sub(r"_\d+$", "", str(node.target)) in names:
            erase(node)
    return graph


class _Reader(fx.Interpreter):
    """Runs the operations one by one, and notes on each whether a head can read what it gives."""

    def __init__(self, module: fx.GraphModule, rows: int) -> None:
        super().__init__(module)
        self.rows = rows

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        try:
            readable = len(check_readable(value, node.name)) == self.rows
        except (TypeError, ValueError):
            readable = False
        node.meta[_READABLE] = readable and node.meta.get(_READABLE, True)
        return value


@torch.no_grad()
def note_readable(model: nn.Module, graph: fx.Graph, x: Tensor) -> None:
    """Run a traced network in eval mode, for `is_readable`: on two batches of other sizes than the sample.

    Another axis than the batch may happen to be as long as one of them.

    Raises:
        ValueError: If the network takes no batches of other sizes.
    """
    with probing(model):
        for batch in other_batches(x):
            try:
                _Reader(fx.GraphModule(model, graph), len(batch)).run(batch)
            except (RuntimeError, ValueError, IndexError) as error:
                raise ValueError(
                    f"{type(model).__name__} takes a batch of {len(x)}, but none of {len(batch)}: "
                    f"{str(error).splitlines()[0]}"
                ) from error


def is_readable(node: fx.Node) -> bool:
    """Whether an operation gave one float tensor of 2 to 4 axes, the batch first: `note_readable`."""
    return bool(node.meta[_READABLE])
