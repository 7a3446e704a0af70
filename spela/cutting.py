"""Cuts a network into parts that follow each other: one tensor goes from each to the next.

The network is traced by torch.fx. It may be cut behind every operation whose result is all that later ones
need; a part begins with a layer that has a weight, so that activations and norms stay with the layer before.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from spela.layers.modes import in_eval_mode
from spela.layers.readout import check_readable
from spela.vectors import as_size
from spela_kernels.precision import recordable, without_inference

__all__ = ["cut_network", "split_evenly"]


class _Tracer(fx.Tracer):
    """Keeps torch's modules, those without modules inside, and those that ask whether they train, whole."""

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        if not module._modules or "training" in type(module).forward.__code__.co_names:
            return True
        own = type(module).__module__.startswith("torch.nn")
        return own and not isinstance(module, nn.Sequential)


@without_inference
def cut_network(
    model: nn.Module,
    sample_input: Tensor,
    blocks: int | str | None = None,
    cut: str | Sequence[str] | None = None,
) -> list[nn.Module]:
    """Cut a copy of a network into parts that give its output when run one after the other.

    Args:
        model: Any module of one tensor that torch.fx can trace.
        sample_input: A batch of its input: says what each part stores for its gradient.
        blocks: How many parts, the largest of which stores as little as possible; or "layers": as many as
            there are.
        cut: Instead, the names (as in named_modules) of the modules behind which to cut, in their order.

    Returns:
        The parts. Their parameters and buffers are the copy's, under the model's own names.

    Raises:
        TypeError: If the sample is no tensor, or the network does not return one float tensor.
        ValueError: If the network cannot be traced or cut there, has fewer parts than asked for, or its
            parts give another result, as where a hook or a `forward` of its own is not traced.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> [[name for name, _ in part.named_children()] for part in cut_network(model, torch.randn(2, 4), 2)]
        [['0', '1'], ['2', '3', '4']]
    """
    if (blocks is None) == (cut is None):
        raise ValueError("give `blocks`, how many parts, or `cut`, the modules behind which to cut")
    if not isinstance(sample_input, Tensor):
        raise TypeError(f"`sample_input` must be a tensor, got {type(sample_input).__name__}")
    sample_input = recordable(sample_input)  # else nothing is stored for its gradient
    names = [cut] if isinstance(cut, str) else cut
    model = copy.deepcopy(model)
    expected = _output(model, sample_input)
    graph = _traced(model)
    steps = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    if names is not None:
        ends = _named_places(steps, names, model)
    elif blocks == "layers":
        ends = _places(steps, model)
    else:
        places = _places(steps, model)
        count = as_size("blocks", blocks)
        if count > len(places) + 1:
            raise ValueError(
                f"`blocks` is {count}, but this network has {len(places)} places to cut it at: at most "
                f"{len(places) + 1} blocks"
            )
        devices = [sample_input.device] if sample_input.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # dropout draws
            sizes = _stored_bytes(_parts(graph, steps, places, model), sample_input)
        runs = split_evenly(sizes, count)
        ends = [place for place, (a, b) in zip(places, pairwise(runs), strict=True) if a != b]
    parts = _parts(graph, steps, ends, model)
    y = _output(nn.Sequential(*parts), sample_input)
    if not y.is_meta and not torch.allclose(y, expected, 1e-4, 1e-6, equal_nan=True):
        raise ValueError(
            f"the parts of {type(model).__name__} do not give its output: hooks, a `forward` set on the "
            "instance or randomness in evaluation are lost in tracing; put that into a module inside"
        )
    return parts


def split_evenly(costs: Sequence[int], parts: int) -> list[int]:
    """Cut a sequence into contiguous parts with the smallest possible largest sum.

    Args:
        costs: Of each item, >= 0.
        parts: Number of parts, each with at least one item.

    Returns:
        The part of each item, 0 .. parts - 1, never falling; of equal cuts the one that leaves
        earlier parts fewer items.

    Raises:
        ValueError: If there are fewer items than parts.

    Example:
        >>> split_evenly([1, 1, 1, 3], 2)
        [0, 0, 0, 1]
    """
    if not 1 <= parts <= len(costs):
        raise ValueError(f"{len(costs)} items cannot be cut into {parts} parts")
    # best[k]: for the first k items in the parts so far, the largest sum and the cuts that give it.
    best: list[tuple[int, list[int]]] = [(sum(costs[:k]), [0] * k) for k in range(len(costs) + 1)]
    for part in range(1, parts):
        best = [
            min(
                (max(best[cut][0], sum(costs[cut:k])), best[cut][1] + [part] * (k - cut))
                for cut in range(part, k)
            )
            if k > part
            else (0, [])
            for k in range(len(costs) + 1)
        ]
    return best[-1][1]


def _traced(model: nn.Module) -> fx.Graph:
    """The network's operations, which must be the same in training and evaluation."""
    graphs = []
    given = inspect.signature(model.forward).parameters
    # The first is the input, with a default or without.
    others = list(given.items())[1:]
    defaults = {name: p.default for name, p in others if p.default is not p.empty}
    for training in (not model.training, model.training):
        modes = {module: module.training for module in model.modules()}
        model.train(training)
        try:
            graphs.append(_without(defaults, _Tracer().trace(model, concrete_args=defaults)))
        except Exception as error:  # whatever the model's own code makes of a proxy
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{type(model).__name__} cannot be traced ({reason}): write it as an nn.Sequential, or "
                "make the blocks by hand with SpelaBlock"
            ) from error
        finally:
            for module, mode in modes.items():
                module.training = mode
    codes = [graph.python_code("self").src for graph in graphs]
    if codes[0] != codes[1]:
        lines = zip(*(code.splitlines() for code in codes), strict=False)
        line = next((b.strip() for a, b in lines if a != b), codes[1].splitlines()[-1].strip())
        raise ValueError(
            f"{type(model).__name__} does other things in training than in evaluation, at {line!r}: let "
            "a module of its own do that (nn.Dropout for functional dropout)"
        )
    graph = graphs[1]
    inputs = [node for node in graph.nodes if node.op == "placeholder" and node.users]
    if len(inputs) != 1:
        raise ValueError(
            f"{type(model).__name__} takes {len(inputs)} inputs: blocks take one tensor"
        )
    return graph


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


def _crossing(steps: list[fx.Node], index: int) -> list[fx.Node]:
    """The results up to step `index` that later steps need; parameters, which any part can hold, apart."""
    later = set(steps[index + 1 :])
    last = steps[-1].graph.output_node()
    return [
        node
        for node in steps[-1].graph.nodes
        if node not in later
        and node.op not in ("get_attr", "output")
        and any(user in later or user is last for user in node.users)
    ]


def _changes(node: fx.Node, value: fx.Node, model: nn.Module) -> bool:
    """Whether a step writes into one of its inputs; a module's `inplace` is switched off instead."""
    if value not in node.all_input_nodes:
        return False
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
        return False
    if not node.args or node.args[0] is not value:
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return (
        in_place or name in ("iadd", "isub", "imul", "setitem") or bool(node.kwargs.get("inplace"))
    )


def _is_place(steps: list[fx.Node], index: int, model: nn.Module) -> bool:
    """Whether a network can be cut behind a step: one tensor passes on, and no later step writes into it."""
    passing = _crossing(steps, index)
    return passing == [steps[index]] and not any(
        _changes(user, steps[index], model) for user in steps[index].users
    )


def _has_weight(node: fx.Node, model: nn.Module) -> bool:
    """Whether a step has a matrix to learn: a layer, not a norm or an activation."""
    if node.op != "call_module":
        return False
    return any(p.dim() > 1 for p in model.get_submodule(str(node.target)).parameters())


def _places(steps: list[fx.Node], model: nn.Module) -> list[int]:
    """The steps behind which a part may end so that the next one begins with a layer."""
    legal = [i for i in range(len(steps) - 1) if _is_place(steps, i, model)]
    places: list[int] = []
    for index, end in enumerate(legal):
        following = steps[
            end + 1 : (legal[index + 1] if index + 1 < len(legal) else len(steps) - 1) + 1
        ]
        before = steps[places[-1] + 1 if places else 0 : end + 1]
        if all(any(_has_weight(node, model) for node in part) for part in (before, following)):
            places.append(end)
    return places


def _named_places(steps: list[fx.Node], names: Sequence[str], model: nn.Module) -> list[int]:
    """The last step of each named module."""
    known = dict(model.named_modules())
    ends: list[int] = []
    for name in names:
        if name not in known:
            raise ValueError(f"`cut` names {name!r}, which is no module of {type(model).__name__}")
        within = [i for i, node in enumerate(steps) if _is_within(node, name)]
        if not within:
            raise ValueError(f"`cut` names {name!r}, which {type(model).__name__} does not call")
        end = within[-1]
        if ends and end <= ends[-1]:
            raise ValueError(
                f"`cut` names {name!r} after {names[len(ends) - 1]!r}, but it ends before"
            )
        if end == len(steps) - 1:
            raise ValueError(f"`cut` names {name!r}, behind which nothing is left")
        passing = _crossing(steps, end)
        if passing != [steps[end]]:
            raise ValueError(
                f"cannot cut behind {name!r}: {len(passing)} values pass there "
                f"({', '.join(node.name for node in passing)}), and blocks hand on one tensor"
            )
        if not _is_place(steps, end, model):
            raise ValueError(
                f"cannot cut behind {name!r}: what comes next changes its output in place"
            )
        ends.append(end)
    return ends


def _is_within(node: fx.Node, name: str) -> bool:
    if node.op == "call_module" and (str(node.target) + ".").startswith(name + "."):
        return True
    return any(name == path for path, _ in node.meta.get("nn_module_stack", {}).values())


def _parts(
    graph: fx.Graph, steps: list[fx.Node], ends: list[int], model: nn.Module
) -> list[nn.Module]:
    """The modules between the places."""
    entry = next(node for node in graph.nodes if node.op == "placeholder" and node.users)
    parts: list[nn.Module] = []
    start = 0
    for end in [*ends, len(steps) - 1]:
        own = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {entry: own.placeholder("x")}
        within = set(steps[start : end + 1])
        for node in steps[: end + 1]:
            # Parameters may have been looked up before the cut.
            if node in within or (node.op == "get_attr" and within & node.users.keys()):
                copies[node] = own.node_copy(node, copies.__getitem__)
        last = steps[end] if end < len(steps) - 1 else graph.output_node().args[0]
        own.output(fx.map_arg(last, copies.__getitem__))
        part = fx.GraphModule(model, own, class_name="Part")
        for name, module in part.named_modules():  # fx makes containers anew
            module.training = model.get_submodule(name).training
        parts.append(part)
        entry, start = steps[end], end + 1
    return parts


@torch.no_grad()
def _output(model: nn.Module, x: Tensor) -> Tensor:
    """What a network makes of a copy of the sample, in eval mode."""
    with in_eval_mode(model):
        try:
            y = model(x.clone())
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{type(model).__name__} does not take an input {tuple(x.shape)}: "
                f"{str(error).splitlines()[0]}"
            ) from error
    return check_readable(y, type(model).__name__)


def _stored_bytes(parts: list[nn.Module], x: Tensor) -> list[int]:
    """What each part keeps for its gradient, in training: of copies, so that no statistic moves."""
    sizes = []
    if len(x) == 1:  # of which batch norm would have no variance
        x = x.repeat(2, *(1 for _ in x.shape[1:]))
    x = (
        x.clone()
    )  # a slice of a batch would count as the whole batch, which is what its storage holds
    for part in copy.deepcopy(nn.ModuleList(parts)).train():
        own = {t.untyped_storage()._cdata for t in (*part.parameters(), *part.buffers())}
        stored: dict[int, int] = {}

        def note(tensor: Tensor, own: set[int] = own, stored: dict[int, int] = stored) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                stored[storage._cdata] = storage.nbytes()
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            y: Any = part(x.detach())
        sizes.append(sum(stored.values()))
        x = y
    return sizes
