"""Symmetric vectors: fixed unit vectors, one per class, as far apart on the sphere as possible.

Axes: N vectors, d their dimension, k mutually orthogonal simplices. Everything here runs on the CPU
in float64; layers round the result to their own dtype and move it to their own device.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from spela.vectors.sphere import announce, best_minimum, coulomb, stress, unit_rows

__all__ = [
    "VECTOR_KINDS",
    "as_size",
    "check_directions",
    "check_vector_kind",
    "check_vectors",
    "class_vectors",
    "coulomb_energy",
    "directions_of",
    "placed_vectors",
    "random_vectors",
    "symmetric_vectors",
]


def as_size(name: str, value: object, *, least: int = 1) -> int:
    """A size as a Python int, whatever integer it was: numpy's are usual.

    Args:
        name: Of the argument, for errors.
        value: What was given.
        least: The smallest allowed.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is smaller.

    Example:
        >>> import numpy as np
        >>> as_size("num_classes", np.array([4, 2]).max())
        4
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        size = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"`{name}` must be an integer, got {value!r} of type {type(value).__name__}"
        ) from None
    if size < least:
        raise ValueError(f"`{name}` must be at least {least}, got {size}")
    return int(size)


def check_vectors(vectors: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse class vectors of a user's own that a layer cannot take.

    Args:
        vectors: What was given.
        shape: The layer's.

    Raises:
        TypeError: If it is no tensor of floats.
        ValueError: If its shape differs.
    """
    if not isinstance(vectors, Tensor) or not vectors.is_floating_point():
        kind = vectors.dtype if isinstance(vectors, Tensor) else type(vectors).__name__
        raise TypeError(f"`vectors` must be a kind's name or a floating point tensor, got {kind}")
    if vectors.shape != shape:
        raise ValueError(f"`vectors` must be {shape}, got {tuple(vectors.shape)}")


def check_directions(vectors: Tensor) -> None:
    """Refuse class vectors (..., d) that point nowhere: zeros, NaN, infinity.

    Raises:
        ValueError: If there is one.
    """
    if vectors.is_meta:
        return
    if not bool(vectors.isfinite().all()) or bool((vectors == 0).all(dim=-1).any()):
        raise ValueError("every one of `vectors` must be finite and not zero: it is a direction")


def symmetric_vectors(
    num_vectors: int,
    dim: int,
    *,
    generator: torch.Generator | None = None,
    like: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return unit vectors of least Coulomb energy sum_{i<j} 1/|v_i - v_j|, randomly rotated.

    N <= d+1: the regular simplex, every cosine -1/(N-1), exact. N <= 2d: N-d orthogonal simplices
    of equal size +- 1, closed form, best known (proven at N = 2d: the cross-polytope). d = 2: the
    regular N-gon. Else: best of max(1, min(16, 800 // N)) L-BFGS runs, a local minimum. From some 300
    vectors in 64 dimensions on these runs are shorter, so that any N takes seconds (what takes longer than
    one says so in the log): the largest cosine there is 0.27 for N = 1,000 and 0.48 for 3,000, where that of
    random vectors is above a half.

    Args:
        num_vectors: N, at least 1; at most 2 when ``dim`` is 1.
        dim: d, at least 1.
        generator: CPU generator all randomness comes from; None: torch's default generator.
        like: (N, d0) float, non-zero rows (their lengths are ignored): the vectors of another layer
            whose pairwise distances are kept. Exact where their rank is at most d; else classical
            scaling to d dimensions, then least squared distance error on the sphere.
        dtype: of the result; float64 by default, layers round it to their own dtype.

    Returns:
        (N, d) ``dtype`` tensor on the CPU, unit rows.

    Raises:
        TypeError: a size is not an int, ``dtype`` or ``like`` is not floating point.
        ValueError: a size below 1, more than 2 vectors in one dimension, ``like`` of another shape,
            not finite or with a zero row, a generator that is not on the CPU.

    Source: "Learning Using a Single Forward Pass" (TMLR 2025), symmetric vectors.

    Example:
        >>> vectors = symmetric_vectors(10, 16, generator=torch.Generator().manual_seed(0))
        >>> cosines = vectors @ vectors.T
        >>> torch.allclose(cosines[~torch.eye(10, dtype=torch.bool)], -torch.ones(90).double() / 9)
        True

        The authors' convolution layers use h x w matrices: the same vectors, reshaped.

        >>> vectors.reshape(10, 4, 4).shape
        torch.Size([10, 4, 4])
    """
    num_vectors, dim = _checked_request(num_vectors, dim, generator, dtype)
    if dim == 1 and num_vectors > 2:
        raise ValueError(
            f"`num_vectors` must be at most 2 where `dim` is 1 (+1 and -1 are all), got {num_vectors}: "
            "use a `dim` of 2 or more"
        )
    if like is not None:
        vectors = _same_geometry(_checked_like(like, num_vectors), like.dtype, dim, generator)
    elif num_vectors <= 2 * dim:
        announce(num_vectors, dim, 3.0 * num_vectors * num_vectors * dim)
        vectors = _orthogonal_simplices(num_vectors, dim, generator)
    elif dim == 2:
        vectors = _polygon(num_vectors, generator)
    else:
        vectors = best_minimum(coulomb, _random_starts(num_vectors, dim, generator))
    return unit_rows(vectors).to(dtype)


def random_vectors(
    num_vectors: int,
    dim: int,
    distribution: str,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return random unit vectors, the ablation of the symmetric ones.

    Args:
        num_vectors: N, at least 1.
        dim: d, at least 1.
        distribution: of every entry before normalising, "gaussian" N(0, 1) or "uniform" U(-1, 1).
        generator: CPU generator; None: torch's default generator.
        dtype: of the result.

    Returns:
        (N, d) ``dtype`` tensor on the CPU, unit rows.

    Raises:
        TypeError: a size is not an int or ``dtype`` is not floating point.
        ValueError: a size below 1, an unknown distribution, a generator that is not on the CPU.

    Source: the paper's ablations (TMLR 2025).

    Example:
        >>> random_vectors(3, 5, "uniform").norm(dim=1).round(decimals=12)
        tensor([1., 1., 1.], dtype=torch.float64)
    """
    num_vectors, dim = _checked_request(num_vectors, dim, generator, dtype)
    shape = (num_vectors, dim)
    if distribution == "gaussian":
        vectors = _normal(shape, generator)
    elif distribution == "uniform":
        vectors = torch.empty(shape, dtype=torch.float64, device="cpu")
        vectors.uniform_(-1.0, 1.0, generator=generator)
    else:
        raise ValueError(f"`distribution` must be 'gaussian' or 'uniform', got {distribution!r}")
    return unit_rows(vectors).to(dtype)


VECTOR_KINDS: dict[str, Callable[..., Tensor]] = {
    "symmetric": symmetric_vectors,
    "gaussian": partial(random_vectors, distribution="gaussian"),
    "uniform": partial(random_vectors, distribution="uniform"),
}
"""Functions that make class vectors, by the name that a layer's `vectors` takes."""


def check_vector_kind(kind: str | Tensor) -> None:
    """Refuse a name that is none of ``VECTOR_KINDS``; vectors themselves are no name.

    Raises:
        ValueError: If it is unknown.
    """
    if isinstance(kind, str) and kind not in VECTOR_KINDS:
        known = ", ".join(VECTOR_KINDS)
        raise ValueError(f"unknown kind of `vectors` {kind!r}: use one of {known}")


def class_vectors(
    kind: str,
    num_vectors: int,
    dim: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return class vectors of a kind given by name.

    Args:
        kind: a key of ``VECTOR_KINDS``.
        num_vectors, dim, generator, dtype: passed on to the function of that kind.

    Returns:
        (N, d) ``dtype`` tensor on the CPU, unit rows.

    Raises:
        ValueError: an unknown kind; what the function of that kind raises comes through.

    Source: as the functions in ``VECTOR_KINDS``.

    Example:
        >>> class_vectors("symmetric", 4, 3).shape
        torch.Size([4, 3])
    """
    check_vector_kind(kind)
    return VECTOR_KINDS[kind](num_vectors, dim, generator=generator, dtype=dtype)


def placed_vectors(
    source: str | Tensor, num_vectors: int, dim: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Class vectors of a kind given by name, or in the directions of given rows: (N, d) float64 unit rows.

    Raises:
        ValueError: an unknown kind, or a row without direction.
    """
    if isinstance(source, str):
        return class_vectors(source, num_vectors, dim, generator=generator)
    check_directions(source)
    return directions_of(source)


def directions_of(rows: Tensor) -> Tensor:
    """Rows (..., d) of any length in float64, of length 1; zeros stay zeros.

    Example:
        >>> directions_of(torch.tensor([[3e-30, 4e-30]]))
        tensor([[0.6000, 0.8000]], dtype=torch.float64)
    """
    rows = rows.double()
    # Else squares of tiny or huge numbers leave the range.
    largest = rows.abs().amax(dim=-1, keepdim=True)
    return torch.nn.functional.normalize(rows / largest.where(largest > 0, 1.0), dim=-1)


def coulomb_energy(vectors: Tensor) -> Tensor:
    """Return the energy sum_{i<j} 1/|v_i - v_j| that symmetric vectors minimise.

    Args:
        vectors: (N, d) of any real dtype, taken as they are (not normalised).

    Returns:
        0-d float64 tensor; inf when two rows coincide, 0 for a single row.

    Raises:
        ValueError: ``vectors`` does not have two axes.

    Source: Thomson's problem.

    Example:
        >>> coulomb_energy(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor(0.5000, dtype=torch.float64)
    """
    if vectors.dim() != 2:
        raise ValueError(
            f"`vectors` must be (N, d), got {tuple(vectors.shape)}: reshape h x w matrices to rows of h * w"
        )
    return torch.pdist(vectors.to(torch.float64)).reciprocal().sum()


def _simplex(size: int) -> Tensor:
    """Return the regular simplex of ``size`` unit vectors in the least dimension: (n, n-1)."""
    # The Householder reflection that takes e_1 to 1/sqrt(n): its other columns are an orthonormal
    # basis of the hyperplane orthogonal to 1, and the rows of that basis are the simplex.
    axis = torch.full((size,), size**-0.5, dtype=torch.float64, device="cpu")
    axis[0] -= 1.0
    reflection = torch.eye(size, dtype=torch.float64, device="cpu")
    reflection -= (2.0 / axis.dot(axis)) * torch.outer(axis, axis)
    return reflection[:, 1:] * math.sqrt(size / (size - 1))


def _orthogonal_simplices(count: int, dim: int, generator: torch.Generator | None) -> Tensor:
    """Return N <= 2d vectors: one simplex, or N-d simplices in mutually orthogonal subspaces."""
    if count == 1:
        return _frame(1, dim, generator)
    groups = max(1, count - dim)
    small, larger = divmod(count, groups)
    sizes = [small + 1] * larger + [small] * (groups - larger)
    vectors = torch.block_diag(*[_simplex(size) for size in sizes])  # (N, N - groups)
    if groups > 1:  # else neighbouring class numbers would always share a simplex
        vectors = vectors[torch.randperm(count, generator=generator, device="cpu")]
    return vectors @ _frame(count - groups, dim, generator)


def _polygon(count: int, generator: torch.Generator | None) -> Tensor:
    """Return the regular polygon in random order and orientation: (N, 2)."""
    order = torch.randperm(count, generator=generator, device="cpu").to(torch.float64)
    angles = order * (2.0 * math.pi / count)
    return torch.stack([angles.cos(), angles.sin()], dim=1) @ _frame(2, 2, generator)


def _same_geometry(
    like: Tensor, like_dtype: torch.dtype, dim: int, generator: torch.Generator | None
) -> Tensor:
    """Return (N, dim) rows whose pairwise distances are those of the unit rows ``like``."""
    count = like.shape[0]
    left, scales, _ = torch.linalg.svd(like, full_matrices=False)
    # Rounding unit rows to a dtype moves no singular value by more than eps * sqrt(N) / 2.
    noise = max(torch.finfo(like_dtype).eps, 1e-12) * math.sqrt(count)
    rank = max(1, int((scales > noise).sum()))
    if rank <= dim:
        return (left[:, :rank] * scales[:rank]) @ _frame(rank, dim, generator)

    distances = torch.cdist(like, like, compute_mode="donot_use_mm_for_euclid_dist")
    squared = distances.square()
    centred = squared - squared.mean(0) - squared.mean(1, keepdim=True) + squared.mean()
    values, axes = torch.linalg.eigh(centred.mul(-0.5))
    scaled = axes[:, -dim:] * values[-dim:].clamp(min=0.0).sqrt()  # classical scaling, (N, dim)
    scaled = scaled @ _frame(dim, dim, generator)
    # Rows that scaling puts at the origin or on top of each other have no direction to move in.
    scaled = scaled + 1e-3 * _normal((count, dim), generator)
    starts = torch.cat([unit_rows(scaled)[None], _random_starts(count, dim, generator)[1:]])
    return best_minimum(partial(stress, distances=distances), starts)


def _random_starts(count: int, dim: int, generator: torch.Generator | None) -> Tensor:
    """Return (S, N, d) unit rows; fewer starts for many vectors, one from N = 401 on."""
    starts = max(1, min(16, 800 // count))
    points = _normal((starts, count, dim), generator)
    return points / points.norm(dim=-1, keepdim=True)


def _frame(rows: int, dim: int, generator: torch.Generator | None) -> Tensor:
    """Return uniformly distributed orthonormal rows: (rows, dim), rows <= dim."""
    basis, upper = torch.linalg.qr(_normal((dim, rows), generator))
    # QR fixes signs by its own convention; drawing them from the matrix makes the frame uniform.
    return (basis * upper.diagonal().sign()).T


def _normal(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    # device is named because a layer may be built under torch.device("meta") or a GPU default
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def _checked_request(
    num_vectors: int, dim: int, generator: torch.Generator | None, dtype: torch.dtype
) -> tuple[int, int]:
    """The two sizes as Python ints."""
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"`generator` must be a CPU generator, got one on {generator.device}: use torch.Generator()"
        )
    if not dtype.is_floating_point:
        raise TypeError(f"`dtype` must be a floating point dtype, got {dtype}")
    return as_size("num_vectors", num_vectors), as_size("dim", dim)


def _checked_like(like: Tensor, num_vectors: int) -> Tensor:
    """Return ``like`` as float64 unit rows on the CPU."""
    if not isinstance(like, Tensor) or not like.is_floating_point():
        kind = like.dtype if isinstance(like, Tensor) else type(like).__name__
        raise TypeError(f"`like` must be a floating point tensor, got {kind}")
    if like.dim() != 2 or like.shape[0] != num_vectors or like.shape[1] < 1:
        raise ValueError(
            f"`like` must be ({num_vectors}, d0), one row for each of `num_vectors`, got {tuple(like.shape)}"
        )
    rows = like.detach().to(device="cpu", dtype=torch.float64)
    if not bool(rows.isfinite().all()):
        raise ValueError("`like` must be finite, got NaN or Inf in it")
    zero = (rows == 0).all(dim=1).nonzero().flatten().tolist()
    if zero:
        raise ValueError(
            f"`like` must have no row of zeros, got one in row {zero[0]}: pass the unit class vectors of "
            "another layer"
        )
    return directions_of(rows)
