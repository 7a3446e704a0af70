"""The modules between the places that a network is cut at, and what each stores for its gradient."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from spela.cutting.proof import training_sample
from spela.cutting.trace import NetworkTracer

__all__ = ["parts_between", "stored_bytes"]


def parts_between(
    graph: fx.Graph, steps: list[fx.Node], ends: list[int], model: nn.Module
) -> list[nn.Module]:
    """The modules between the places."""
    entry = next(node for node in graph.nodes if node.op == "placeholder" and node.users)
    parts: list[nn.Module] = []
    start = 0
    for end in [*ends, len(steps) - 1]:
        own = fx.Graph(tracer_cls=NetworkTracer)
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


def stored_bytes(parts: list[nn.Module], x: Tensor) -> list[int]:
    """What each part keeps for its gradient, in training: of copies, so that no statistic moves."""
    sizes = []
    x = training_sample(x)  # a slice of a batch would count as the whole batch its storage holds
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
