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
        last = part is parts[-1] and _last_module(part)
        own = dict(head)
        if isinstance(last, nn.Linear) and last.out_features == num_classes:
            # The logits are turned themselves: the cosines to these vectors order the classes as they do.
            own |= {"projection": None, "hidden": 0, "vectors": simplex(num_classes)}
            draw_if_zero(last, head["generator"])
        body = part
        if head.get("checkpoint"):
            body = nn.Sequential(*cut_network(part, x, "layers"))
            body.training = part.training
        block = SpelaBlock(body, num_classes, x, **own)
        block.training = part.training
        with probing(body):
            x = body(x)
        found.append(block)
    return found


def _last_module(part: nn.Module) -> nn.Module | None:
    """The module that gives a part's output; None if an operation does."""
    (last,) = part.graph.output_node().all_input_nodes  # type: ignore[union-attr, operator]
    return part.get_submodule(str(last.target)) if last.op == "call_module" else None
