"""Vectors for classes that a trained layer was not built for."""

from __future__ import annotations

import torch
from torch import Tensor

from spela.vectors.symmetric import as_size, directions_of, symmetric_vectors

__all__ = ["further_vectors"]


def further_vectors(
    vectors: Tensor, count: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Symmetric vectors at right angles to all those given, which stay what a layer has learnt to turn to.

    Args:
        vectors: (N, d) float rows; their lengths are ignored.
        count: M, at least 1.
        generator: CPU source of their rotation; None: torch's default one.

    Returns:
        (M, d) unit rows, in the dtype and on the device of `vectors`.

    Raises:
        ValueError: If d has too few dimensions that the given rows leave free: one for M = 1 or 2, else two.

    Example:
        >>> old = symmetric_vectors(5, 16)
        >>> new = further_vectors(old, 3)
        >>> bool((old @ new.T).abs().max() < 1e-12), (new @ new.T).round(decimals=6)[0].tolist()
        (True, [1.0, -0.5, -0.5])
    """
    count = as_size("count", count)
    dim = vectors.shape[1]
    rows = directions_of(vectors.detach().cpu())
    _, lengths, axes = torch.linalg.svd(rows)
    # A simplex has one dimension less than rows, but for the rounding of each: of their own precision, or of
    # float32, which they may have been drawn in.
    eps = max(torch.finfo(vectors.dtype).eps, torch.finfo(torch.float32).eps)
    noise = eps * len(rows) ** 0.5
    free = axes[int((lengths > noise).sum()) :]  # (d - rank, d)
    if len(free) < (1 if count <= 2 else 2):
        raise ValueError(
            f"class vectors of {dim} numbers have no room for {count} classes more than {len(rows)}: build "
            "the network with a larger num_classes"
        )
    new = symmetric_vectors(count, len(free), generator=generator) @ free
    return new.to(vectors)
