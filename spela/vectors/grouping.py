"""Class grouping: every convolution kernel sorts the classes into groups of its own, a vector each.

Axes: K kernels, C classes, G most groups of a kernel, d symmetric dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spela.vectors.symmetric import as_size, class_vectors

__all__ = [
    "Groups",
    "class_grouping",
    "codes_problem",
    "decode_groups",
    "encode_groups",
    "group_vectors",
    "most_groups",
]

_CODE_BITS = 32

Groups = int | tuple[int, int] | Tensor | None
"""g for every kernel, [low, high) to draw g_k from, or the grouping itself (K, C); None: (2, C)."""


def class_grouping(
    num_kernels: int,
    num_classes: int,
    groups: Groups = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sort the classes into groups at random, anew for every kernel, no group empty.

    Uniform over the surjections of C classes onto g_k groups: each is as likely as any other.

    Args:
        num_kernels: K, at least 1.
        num_classes: C, at least 1.
        groups: g (1..C) for every kernel; (low, high): g_k is drawn from low..high-1; a (K, C)
            grouping, as another layer's, to be checked; None: (2, C), or C groups where C < 3.
        generator: CPU generator; None: torch's default one.

    Returns:
        (K, C) int64 on the CPU: group of each class, 0..g_k-1 in kernel k.

    Raises:
        ValueError: If a size or range does not fit, or a given grouping has an empty group.
        TypeError: If a given grouping is not int64.

    Source: the authors' CNN notebooks.

    Example:
        >>> grouping = class_grouping(128, 10, (2, 5))
        >>> sorted(set(grouping.amax(dim=1).tolist()))
        [1, 2, 3]
    """
    num_kernels = as_size("num_kernels", num_kernels)
    num_classes = as_size("num_classes", num_classes)
    if isinstance(groups, Tensor):
        return _checked(groups, num_kernels, num_classes)
    low, high = _bounds(groups, num_classes)
    counts = torch.randint(low, high, (num_kernels, 1), generator=generator, device="cpu")
    shape = (num_kernels, num_classes)
    order = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
    draws = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    blocks = _partitions(counts[:, 0], draws)
    # Blocks are numbered by their first class: groups are the same blocks, numbered at random.
    place = torch.arange(num_classes, device="cpu")
    number = order.masked_fill(place >= counts, 2.0).argsort(dim=1).argsort(dim=1)
    return number.gather(1, blocks)


def most_groups(groups: Groups, num_classes: int) -> int:
    """The most groups a kernel may get under `class_grouping(_, num_classes, groups)`.

    Args:
        groups: As in `class_grouping`.
        num_classes: C.

    Returns:
        G; it follows from the arguments alone, so that layers built alike have buffers of one shape.

    Raises:
        ValueError: As `class_grouping`.

    Example:
        >>> most_groups((2, 10), 10), most_groups(3, 10)
        (9, 3)
    """
    if isinstance(groups, Tensor):
        return int(groups.max()) + 1
    return _bounds(groups, num_classes)[1] - 1


def encode_groups(grouping: Tensor) -> Tensor:
    """Groups as a buffer holds them: (g + 1/2) 2^32, which reads as g after any averaging of equal tables.

    Weight averages that include buffers compute decay * a + (1 - decay) * b in floating point and round down,
    which would change plain group numbers. A code starts in the middle of its group's interval and drifts by
    less than g 2^9 / (1 - decay), where 2^31 would take it out.

    Args:
        grouping: (K, C) int64.

    Returns:
        (K, C) int64 on the same device.

    Example:
        >>> codes = encode_groups(torch.tensor([[0, 3]]))
        >>> average = torch.full_like(codes, 0).copy_(codes * 0.9 + codes * 0.1)
        >>> decode_groups(average)
        tensor([[0, 3]])
    """
    return (grouping << _CODE_BITS) + (1 << (_CODE_BITS - 1))


def decode_groups(codes: Tensor) -> Tensor:
    """The inverse of `encode_groups`: (K, C) int64."""
    return codes >> _CODE_BITS


def codes_problem(codes: Tensor, size: int) -> str:
    """What is wrong with codes that come from elsewhere.

    Args:
        codes: (K, C) int64.
        size: G, most groups of a kernel.

    Returns:
        Words, or nothing.

    Example:
        >>> tables = encode_groups(torch.tensor([[0, 1]])), encode_groups(torch.tensor([[1, 0]]))
        >>> codes_problem((tables[0] + tables[1]) // 2, 2)
        'is no table of groups: an average of different ones?'
    """
    groups = decode_groups(codes)
    if groups.min() < 0 or groups.max() >= size:
        return f"has groups outside the layer's 0..{size - 1}"
    if (codes - encode_groups(groups)).abs().max() > 1 << (_CODE_BITS - 2):
        return "is no table of groups: an average of different ones?"
    return ""


def group_vectors(
    kind: str,
    counts: list[int],
    dim: int,
    size: int,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Class vectors of the groups of every kernel, drawn or rotated anew for each.

    Args:
        kind: symmetric, gaussian or uniform.
        counts: g_k for each of K kernels.
        dim: d.
        size: G, at least the largest g_k.
        generator: CPU generator; None: torch's default one.

    Returns:
        (K, G, d) float64 on the CPU: unit rows, zeros after the first g_k.

    Raises:
        ValueError: If the kind is unknown or d is too small for the vectors.

    Source: the authors' CNN notebooks, for the groups; `spela/vectors/symmetric.py`, for the vectors.

    Example:
        >>> vectors = group_vectors("symmetric", [2, 3], 4, 3)
        >>> round((vectors[1] @ vectors[1].T)[0, 1].item(), 12)
        -0.5
    """
    vectors = torch.zeros(len(counts), size, dim, dtype=torch.float64, device="cpu")
    for count in sorted(set(counts)):
        kernels = [kernel for kernel, own in enumerate(counts) if own == count]
        if kind == "symmetric":  # one geometry for all kernels of a count: finding one is costly
            rows = class_vectors(kind, count, dim, generator=generator)
            drawn = _rotated(rows, len(kernels), generator)
        else:
            drawn = torch.stack(
                [class_vectors(kind, count, dim, generator=generator) for _ in kernels]
            )
        vectors[kernels, :count] = drawn
    return vectors


def _partitions(counts: Tensor, draws: Tensor) -> Tensor:
    """Uniform partitions of C classes into counts (K,) blocks, from uniform draws (K, C): (K, C) blocks.

    Of the S(n, k) partitions of n classes into k blocks, S(n-1, k-1) leave the last class alone; in the
    others it joins any of k blocks. Source: Stirling numbers of the second kind, S.
    """
    num_classes = draws.shape[1]
    size = torch.arange(1, int(counts.max()) + 1, dtype=torch.float64, device="cpu")
    # S(n, k) overflows, its ratios do not: ratio[k-1] is S(n, k) / S(n, k-1), alone[n, k-1] the
    # share S(n, k-1) / S(n+1, k).
    ratio = torch.zeros_like(size)
    alone = torch.empty(num_classes, len(size), dtype=torch.float64, device="cpu")
    for n in range(num_classes):
        torch.reciprocal(1 + size * ratio, out=alone[n])
        ratio[1:] = (1 + size[1:] * ratio[1:]) / (1 / ratio[:-1] + size[:-1])
        ratio[0] = torch.inf  # S(n, 0) is 0 from n = 1 on
    blocks = torch.empty(draws.shape, dtype=torch.int64, device="cpu")
    left = counts.clone()
    for n in reversed(range(num_classes)):
        share = alone[n, left - 1]
        joined = ((draws[:, n] - share) / (1 - share) * left).long()
        own = draws[:, n] < share
        blocks[:, n] = torch.where(own, left - 1, joined.clamp(max=left - 1))
        left -= own.long()
    return blocks


def _bounds(groups: int | tuple[int, int] | None, num_classes: int) -> tuple[int, int]:
    if groups is None:
        groups = (2, num_classes) if num_classes > 2 else num_classes
    if isinstance(groups, tuple):
        low, high = (as_size("groups", bound, least=0) for bound in groups)
    else:
        low = as_size("groups", groups, least=0)
        high = low + 1
    if not 1 <= low < high <= num_classes + 1:
        raise ValueError(
            f"`groups` must be 1..{num_classes}, or (low, high) with 1 <= low < high <= "
            f"{num_classes + 1}, for {num_classes} classes, got {groups}"
        )
    return low, high


def _checked(grouping: Tensor, num_kernels: int, num_classes: int) -> Tensor:
    if grouping.shape != (num_kernels, num_classes):
        raise ValueError(
            f"a given grouping must be ({num_kernels}, {num_classes}), one group a kernel and "
            f"class, got {tuple(grouping.shape)}"
        )
    if grouping.dtype != torch.int64:
        raise TypeError(f"a given grouping must be int64, got {grouping.dtype}: use .long()")
    grouping = grouping.detach().to("cpu", copy=True)
    for kernel, row in enumerate(grouping):
        used = row.unique().tolist()
        if used != list(range(len(used))):
            raise ValueError(
                f"a given grouping must number the groups of a kernel 0..g-1 with none empty, but "
                f"kernel {kernel} uses {used}"
            )
    return grouping


def _rotated(rows: Tensor, copies: int, generator: torch.Generator | None) -> Tensor:
    """(N, d) unit rows in `copies` random orientations: (copies, N, d)."""
    left, scales, _ = torch.linalg.svd(rows, full_matrices=False)
    shape = (copies, rows.shape[1], len(scales))
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    frames, upper = torch.linalg.qr(drawn)  # (copies, d, rank)
    # QR fixes signs by its own convention; drawing them from the matrix makes the frames uniform.
    frames = frames * upper.diagonal(dim1=1, dim2=2).sign()[:, None]
    return torch.nn.functional.normalize((left * scales) @ frames.mT, dim=2)
