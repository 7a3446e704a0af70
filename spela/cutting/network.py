"""Cuts a network into parts that follow each other: one tensor goes from each to the next.

The network is traced by torch.fx. It may be cut behind every operation whose result, one tensor that a head
can read, is all that later ones need; a part begins with a layer that has a weight, so that activations and
norms stay with the layer before.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from spela.cutting.even import split_evenly
from spela.cutting.parts import parts_between, stored_bytes
from spela.cutting.places import named_places, places_between_layers
from spela.cutting.proof import check_gradients, check_output, sample_output
from spela.cutting.trace import note_readable, traced
from spela.vectors import as_size
from spela_kernels.precision import recordable, without_inference

__all__ = ["cut_network"]


@without_inference
def cut_network(
    model: nn.Module,
    sample_input: Tensor,
    blocks: int | str | None = None,
    cut: str | Sequence[str] | None = None,
) -> list[nn.Module]:
    """Cut a copy of a network into parts that give its output, and its gradients, one after the other.

    Args:
        model: Any module of one tensor that torch.fx can trace.
        sample_input: A batch of its input: says what each part stores for its gradient.
        blocks: How many parts, the largest of which stores as little as possible; or "layers": as many as
            there are.
        cut: Instead, the names (as in named_modules) of the modules behind which to cut, in their order.

    Returns:
        The parts. Their parameters and buffers are the copy's, under the model's own names.

    Raises:
        TypeError: If the sample is no tensor, `blocks` neither an integer nor "layers", or the network does
            not return one float tensor.
        ValueError: If the network cannot be copied, traced or cut there, has fewer parts than asked for, or
            its parts give another result or gradient, as where a hook, a `forward` of its own,
            `torch.no_grad` or a backward of its own is not traced.

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
    if blocks is not None and blocks != "layers":
        if isinstance(blocks, str):
            raise TypeError(f"`blocks` must be an integer or 'layers', got {blocks!r}")
        blocks = as_size("blocks", blocks)
    names = [cut] if isinstance(cut, str) else cut
    if names is not None and not names:
        raise ValueError("`cut` names no module: give the modules behind which to cut, or `blocks`")
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise ValueError(
                f"parameter {name!r} of {type(model).__name__} has a gradient hook, which would be lost: "
                "remove it first"
            )
    model = _copied(model)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.inplace = False  # it would write into its input in training alone
    expected = sample_output(model, sample_input)
    graph = traced(model)
    note_readable(model, graph, sample_input)
    steps = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    if names is not None:
        ends = named_places(steps, names, model)
    elif isinstance(blocks, str):
        ends = places_between_layers(steps, model)
    else:
        places = places_between_layers(steps, model)
        count = int(blocks)  # type: ignore[arg-type]
        if count > len(places) + 1:
            raise ValueError(
                f"`blocks` is {count}, but this network has {len(places)} places to cut it at: at most "
                f"{len(places) + 1} blocks"
            )
        devices = [sample_input.device] if sample_input.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # dropout draws
            sizes = stored_bytes(parts_between(graph, steps, places, model), sample_input)
        runs = split_evenly(sizes, count)
        ends = [place for place, (a, b) in zip(places, pairwise(runs), strict=True) if a != b]
    parts = parts_between(graph, steps, ends, model)
    check_output(model, parts, sample_input, expected)
    check_gradients(model, parts, sample_input)
    return parts


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:  # a tensor that is the result of a computation
        for name, module in model.named_modules():
            values = (value for value in vars(module).values() if isinstance(value, Tensor))
            if any(not value.is_leaf for value in values):
                raise ValueError(
                    f"module {name!r} ({type(module).__name__}) cannot be copied, its weight is computed "
                    "before every call: use torch.nn.utils.parametrizations or remove what computes it"
                ) from error
        raise ValueError(
            f"{type(model).__name__} cannot be copied: {str(error).splitlines()[0]}"
        ) from error
