"""Where a traced network can be cut: behind which of its steps one tensor alone passes on."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence

from torch import fx, nn

from spela.cutting.trace import is_readable

__all__ = ["named_places", "places_between_layers"]


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
    return _writes(node, value)


def _writes(node: fx.Node, value: fx.Node) -> bool:
    """Whether an operation changes one of its inputs: the first, by its name or where it is told to."""
    if node.op == "call_module" or not node.args or node.args[0] is not value:
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return (
        in_place or name in ("iadd", "isub", "imul", "setitem") or bool(node.kwargs.get("inplace"))
    )


def _own(node: fx.Node, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of a step that learn: of its module, or looked up for it."""
    if node.op == "call_module":
        path = str(node.target)
        named = model.get_submodule(path).named_parameters(path)
        yield from ((name, p) for name, p in named if p.requires_grad)
    for value in node.all_input_nodes:
        if value.op == "get_attr":
            found = _looked_up(value, model)
            if isinstance(found, nn.Parameter) and found.requires_grad:
                yield str(value.target), found


def _changing(steps: list[fx.Node], model: nn.Module) -> dict[int, str]:
    """Names of buffers that change as the network runs, by identity: written by a step, or of a module.

    What only reads a buffer may stand in another part: it has the same values there, on any device.
    """
    found: dict[int, str] = {}
    for node in steps:
        if node.op == "call_module":
            path = str(node.target)
            found |= {id(b): name for name, b in model.get_submodule(path).named_buffers(path)}
        for value in node.all_input_nodes:
            if value.op == "get_attr" and (
                _writes(node, value) or "batch_norm" in str(node.target)
            ):
                found[id(_looked_up(value, model))] = str(value.target)
    return found


def _looked_up(node: fx.Node, model: nn.Module) -> object:
    return operator.attrgetter(str(node.target))(model)


def _held(node: fx.Node, model: nn.Module, changing: dict[int, str]) -> Iterator[tuple[str, int]]:
    """Name and identity of what a step uses and one part alone can hold: what learns, what changes."""
    yield from ((name, id(parameter)) for name, parameter in _own(node, model))
    used: list[object] = [_looked_up(v, model) for v in node.all_input_nodes if v.op == "get_attr"]
    if node.op == "call_module":
        used += model.get_submodule(str(node.target)).buffers()
    yield from ((changing[id(buffer)], id(buffer)) for buffer in used if id(buffer) in changing)


def _tied(steps: list[fx.Node], model: nn.Module) -> list[str]:
    """By step, a parameter or buffer used up to there and behind, which two parts cannot both move; or ""."""
    spans: dict[int, tuple[str, int, int]] = {}
    changing = _changing(steps, model)
    for index, node in enumerate(steps):
        for name, held in _held(node, model, changing):
            name, first, _ = spans.get(held, (name, index, index))
            spans[held] = (name, first, index)
    tied = [""] * len(steps)
    for name, first, last in spans.values():
        tied[first:last] = [name] * (last - first)
    return tied


def _is_place(steps: list[fx.Node], index: int, model: nn.Module) -> bool:
    """Whether a network can be cut behind a step: what a head can read passes on, and is not written into."""
    passing = _crossing(steps, index)
    return (
        passing == [steps[index]]
        and is_readable(steps[index])
        and not any(_changes(user, steps[index], model) for user in steps[index].users)
    )


def _has_weight(node: fx.Node, model: nn.Module) -> bool:
    """Whether a step has a matrix to learn: a layer, not a norm or an activation."""
    if node.op != "call_module":
        return False
    return any(p.dim() > 1 for p in model.get_submodule(str(node.target)).parameters())


def places_between_layers(steps: list[fx.Node], model: nn.Module) -> list[int]:
    """The steps behind which a part may end so that the next one begins with a layer."""
    tied = _tied(steps, model)
    legal = [i for i in range(len(steps) - 1) if not tied[i] and _is_place(steps, i, model)]
    places: list[int] = []
    for index, end in enumerate(legal):
        following = steps[
            end + 1 : (legal[index + 1] if index + 1 < len(legal) else len(steps) - 1) + 1
        ]
        before = steps[places[-1] + 1 if places else 0 : end + 1]
        if all(any(_has_weight(node, model) for node in part) for part in (before, following)):
            places.append(end)
    return places


def named_places(steps: list[fx.Node], names: Sequence[str], model: nn.Module) -> list[int]:
    """The last step of each named module."""
    known, tied = dict(model.named_modules()), _tied(steps, model)
    ends: list[int] = []
    for name in names:
        if name not in known:
            names_there = ", ".join(repr(there) for there in list(known)[1:6])
            raise ValueError(
                f"`cut` names {name!r}, which is no module of {type(model).__name__}: its modules are "
                f"{names_there}, ... (named_modules)"
            )
        within = [i for i, node in enumerate(steps) if _is_within(node, name)]
        if not within:
            raise ValueError(f"`cut` names {name!r}, which {type(model).__name__} does not call")
        end = within[-1]
        if names.count(name) > 1:
            raise ValueError(f"`cut` names {name!r} {names.count(name)} times")
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
        if not is_readable(steps[end]):
            raise ValueError(
                f"cannot cut behind {name!r}: what passes there is no float tensor of 2 to 4 axes, the "
                "batch first, as a head reads"
            )
        if tied[end]:
            raise ValueError(
                f"cannot cut behind {name!r}: {tied[end]!r} is used before and behind, and what learns apart "
                "cannot share a parameter, nor a buffer that changes"
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
