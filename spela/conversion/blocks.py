"""A network cut into parts, each of which becomes a SpelaBlock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spela.conversion.weights import draw_if_zero, simplex
from spela.cutting import cut_network
from spela.layers import SpelaBlock
from spela.layers.modes import probing

__all__ = ["by_blocks"]


def by_blocks(
    model: nn.Module,
    num_classes: int,
    x: Tensor,
    blocks: int | str | None,
    cut: str | Sequence[str] | None,
    head: dict[str, Any],
) -> list[SpelaBlock]:
    """A network cut into blocks.

    Args:
        model: Any module that can be cut.
        num_classes: C.
        x: A batch of its input.
        blocks: How many, or "layers", or None.
        cut: Instead, the names of the modules behind which to cut.
        head: Settings of `SpelaBlock`.
    """
    parts = cut_network(model, x, blocks, cut)
    found: list[SpelaBlock] = []
    for part in parts:
        with probing(part):
            y = part(x.clone())  # which may work in place: the block says so
        last = part is parts[-1] and _last_module(part)
        own = dict(head)
        if (
            isinstance(last, nn.Linear)
            and last.out_features == num_classes
            and y.shape[-1] == num_classes
            and y.dim() < 4  # a map is read whole
        ):
            # The logits are turned themselves: the cosines to these vectors order the classes as they do.
            own |= {
                "projection": None,
                "hidden": 0,
                "vectors": simplex(num_classes),
                "dropout": 0.0,
            }
            draw_if_zero(last, head["generator"])
        body = part
        if head.get("checkpoint"):
            body = nn.Sequential(*cut_network(part, x, "layers"))
            body.training = part.training
        block = SpelaBlock(body, num_classes, x, **own)
        block.training = part.training
        for module in (block.head, block.dropout, block.similarity):
            if module is not None:
                module.train(part.training)
        found.append(block)
        x = y
    return found


def _last_module(part: nn.Module) -> nn.Module | None:
    """The last module that computes something for a part's output; None if an operation gives it."""
    (last,) = part.graph.output_node().all_input_nodes  # type: ignore[union-attr, operator]
    while last.op == "call_module":
        module = part.get_submodule(str(last.target))
        if not isinstance(module, nn.Identity | nn.Dropout | nn.Flatten):
            return module
        last = last.all_input_nodes[0]
    return None
