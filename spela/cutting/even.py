"""Contiguous shares of a sequence whose largest is as small as can be."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["split_evenly"]


def split_evenly(costs: Sequence[int], parts: int) -> list[int]:
    """Cut a sequence into contiguous parts with the smallest possible largest sum.

    Args:
        costs: Of each item, >= 0.
        parts: Number of parts, each with at least one item.

    Returns:
        The part of each item, 0 .. parts - 1, never falling; of equal cuts the one whose last
        parts hold fewest items.

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
