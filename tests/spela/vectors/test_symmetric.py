"""Symmetric vectors: exact where a closed form exists, lowest known energy where not."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Tensor

from spela import SpelaConv2d
from spela.vectors import (
    VECTOR_KINDS,
    class_vectors,
    coulomb_energy,
    further_vectors,
    placed_vectors,
    random_vectors,
    symmetric,
    symmetric_vectors,
)
from spela.vectors.sphere import coulomb


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distances(vectors: Tensor) -> Tensor:
    return (vectors[:, None] - vectors[None]).norm(dim=-1)


def stress(vectors: Tensor, target: Tensor) -> float:
    return 0.5 * (distances(vectors) - target).square().sum().item()


def assert_unit_rows(vectors: Tensor, tolerance: float = 1e-14) -> None:
    assert (vectors.norm(dim=1) - 1).abs().max().item() <= tolerance


def projected_gradient_descent(start: Tensor, steps: int, rate: float) -> Tensor:
    """Plain descent on the sphere by autograd: the floor symmetric vectors must not fall below."""
    vectors = start / start.norm(dim=1, keepdim=True)
    for _ in range(steps):
        vectors = vectors.detach().requires_grad_()
        energy = coulomb_energy(vectors)
        (gradient,) = torch.autograd.grad(energy, vectors)
        moved = vectors.detach() - rate * gradient
        vectors = moved / moved.norm(dim=1, keepdim=True)
    return vectors


@pytest.mark.parametrize(
    ("count", "dim"),
    [(2, 1), (2, 2), (3, 2), (4, 3), (7, 31), (10, 10), (10, 64), (65, 64), (100, 1024)],
    ids=lambda value: str(value),
)
def test_simplex_cosines_are_equal_and_least(count: int, dim: int) -> None:
    vectors = symmetric_vectors(count, dim, generator=seeded())
    expected = torch.full((count, count), -1.0 / (count - 1), dtype=torch.float64)
    expected.fill_diagonal_(1.0)
    assert vectors.shape == (count, dim)
    torch.testing.assert_close(vectors @ vectors.T, expected, rtol=0, atol=1e-14)


def test_thousand_classes_are_an_exact_simplex_soon() -> None:
    started = time.process_time()
    vectors = symmetric_vectors(1000, 1024, generator=seeded())
    assert time.process_time() - started < 5.0
    cosines = vectors @ vectors.T
    off_diagonal = cosines[~torch.eye(1000, dtype=torch.bool)]
    assert (off_diagonal + 1.0 / 999).abs().max().item() <= 1e-14


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_single_vector_is_a_random_unit_vector(dim: int) -> None:
    drawn = torch.cat([symmetric_vectors(1, dim, generator=seeded(s)) for s in range(20)])
    assert_unit_rows(drawn)
    assert (drawn > 0).any(dim=0).all()
    assert (drawn < 0).any(dim=0).all()


def test_embedding_is_uniform_over_rotations() -> None:
    # Over all rotations every entry of a unit vector in R^3 has mean 0 and mean square 1/3.
    generator = seeded()
    drawn = torch.stack([symmetric_vectors(4, 3, generator=generator) for _ in range(2000)])
    assert drawn.mean(0).abs().max().item() < 0.06
    assert (drawn.square().mean(0) - 1 / 3).abs().max().item() < 0.04


@pytest.mark.parametrize(
    ("count", "energy"),
    [
        (4, 3.674234614),
        (5, 6.474691495),
        (6, 9.985281374),
        (8, 19.675287861),
        (12, 49.165253058),
        (32, 412.261274651),
        (100, 4448.350634331),  # one start alone often ends higher
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_known_minima_on_the_ordinary_sphere(count: int, energy: float, seed: int) -> None:
    vectors = symmetric_vectors(count, 3, generator=seeded(seed))
    assert coulomb_energy(vectors).item() == pytest.approx(energy, abs=1.5e-9)


@pytest.mark.parametrize("count", [3, 4, 5, 12, 101])
def test_plane_gives_the_regular_polygon(count: int) -> None:
    vectors = symmetric_vectors(count, 2, generator=seeded())
    angles = torch.atan2(vectors[:, 1], vectors[:, 0]).sort().values
    gaps = torch.cat([angles.diff(), (angles[:1] + 2 * math.pi) - angles[-1:]])
    torch.testing.assert_close(gaps, torch.full_like(gaps, 2 * math.pi / count), rtol=0, atol=1e-12)


def test_hundred_classes_in_64_dimensions() -> None:
    started = time.process_time()
    vectors = symmetric_vectors(100, 64, generator=seeded())
    assert time.process_time() - started < 5.0
    assert_unit_rows(vectors)
    assert coulomb_energy(vectors).item() <= 3487.623


def test_twice_the_dimension_is_the_cross_polytope() -> None:
    cosines = (lambda v: v @ v.T)(symmetric_vectors(32, 16, generator=seeded()))
    ordered = cosines.sort(dim=1).values
    torch.testing.assert_close(ordered[:, 0], -torch.ones(32).double(), rtol=0, atol=1e-14)
    torch.testing.assert_close(ordered[:, 1:31], torch.zeros(32, 30).double(), rtol=0, atol=1e-14)


def test_orthogonal_simplices_are_in_random_class_order() -> None:
    # 8 vectors in R^5 are simplices of 3, 3 and 2; without shuffling, classes 0, 1, 2 share one.
    first = [symmetric_vectors(8, 5, generator=seeded(seed))[:3] for seed in range(12)]
    assert any(torch.linalg.matrix_rank(rows).item() == 3 for rows in first)


@pytest.mark.parametrize(
    ("count", "dim"),
    [(6, 4), (8, 5), (13, 8), (16, 8), (12, 3), (20, 4), (40, 6)],
    ids=lambda value: str(value),
)
def test_not_worse_than_projected_gradient_descent(count: int, dim: int) -> None:
    lowest = math.inf
    for seed in range(4):
        start = torch.randn(count, dim, dtype=torch.float64, generator=seeded(100 + seed))
        for rate in (0.3 / count, 0.03 / count):
            found = coulomb_energy(projected_gradient_descent(start, 500, rate)).item()
            lowest = min(lowest, found)
    ours = coulomb_energy(symmetric_vectors(count, dim, generator=seeded())).item()
    assert ours <= lowest + 1e-9 * lowest


def test_relaxed_vectors_are_stationary() -> None:
    vectors = symmetric_vectors(30, 6, generator=seeded()).requires_grad_()
    (gradient,) = torch.autograd.grad(coulomb_energy(vectors), vectors)
    tangent = gradient - (gradient * vectors).sum(dim=1, keepdim=True) * vectors
    assert tangent.abs().max().item() < 1e-4
    assert_unit_rows(vectors)


@pytest.mark.parametrize(
    ("count", "from_dim", "dim"),
    [(10, 9, 64), (10, 64, 9), (5, 3, 3), (1, 4, 2), (2, 1, 7), (12, 4, 5), (12, 300, 12)],
    ids=lambda value: str(value),
)
def test_like_keeps_all_distances_when_rank_allows(count: int, from_dim: int, dim: int) -> None:
    like = random_vectors(count, from_dim, "gaussian", generator=seeded())
    if from_dim == 64:  # the simplex of 10 has rank 9
        like = symmetric_vectors(count, from_dim, generator=seeded())
    before = like.clone()
    vectors = symmetric_vectors(count, dim, like=like, generator=seeded(1))
    assert vectors.shape == (count, dim)
    torch.testing.assert_close(distances(vectors), distances(like), rtol=0, atol=1e-12)
    assert torch.equal(like, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_like_sees_the_rank_through_rounding(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scipy.optimize.minimize", None)  # exact: nothing is left to relax
    like = symmetric_vectors(10, 256, generator=seeded(), dtype=dtype)  # rank 9 plus rounding
    vectors = symmetric_vectors(10, 9, like=like, generator=seeded(1))
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(distances(vectors), distances(like.double()), rtol=0, atol=rounding)


def test_like_is_drawn_in_a_new_orientation() -> None:
    like = symmetric_vectors(4, 8, generator=seeded())
    assert not torch.allclose(symmetric_vectors(4, 8, like=like, generator=seeded(1)), like)


@pytest.mark.parametrize(
    ("count", "from_dim", "dim"),
    [(12, 8, 3), (10, 9, 5), (30, 20, 7)],
    ids=lambda value: str(value),
)
def test_like_relaxes_where_rank_does_not_allow(count: int, from_dim: int, dim: int) -> None:
    like = random_vectors(count, from_dim, "gaussian", generator=seeded())
    target = distances(like)
    centring = torch.eye(count).double() - 1.0 / count
    values, axes = torch.linalg.eigh(-0.5 * centring @ target.square() @ centring)
    scaled = axes[:, -dim:] * values[-dim:].sqrt()
    scaled = scaled / scaled.norm(dim=1, keepdim=True)
    vectors = symmetric_vectors(count, dim, like=like, generator=seeded(1))
    assert_unit_rows(vectors)
    assert stress(vectors, target) < 0.95 * stress(scaled, target)
    assert stress(vectors, target) < stress(symmetric_vectors(count, dim), target)


def test_like_keeps_coincident_rows_together() -> None:
    like = symmetric_vectors(6, 8, generator=seeded())[[0, 1, 2, 3, 4, 5, 5]]
    vectors = symmetric_vectors(7, 3, like=like, generator=seeded())
    assert distances(vectors)[5, 6].item() < 1e-3
    assert distances(vectors)[:6, :6].add(10 * torch.eye(6).double()).min().item() > 0.3


@pytest.mark.parametrize("kind", sorted(VECTOR_KINDS))
@pytest.mark.parametrize("shape", [(10, 16), (12, 8), (11, 3)], ids=str)
def test_one_seed_gives_one_result(kind: str, shape: tuple[int, int]) -> None:
    first = class_vectors(kind, *shape, generator=seeded(3))
    assert torch.equal(first, class_vectors(kind, *shape, generator=seeded(3)))
    assert not torch.allclose(first, class_vectors(kind, *shape, generator=seeded(4)))


@pytest.mark.parametrize("kind", sorted(VECTOR_KINDS))
@pytest.mark.parametrize("shape", [(1, 5), (10, 16), (12, 8), (9, 2), (11, 3)], ids=str)
def test_a_given_generator_leaves_the_default_one_alone(kind: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    vectors = class_vectors(kind, *shape, generator=seeded())
    if kind == "symmetric":
        symmetric_vectors(shape[0], 2, like=vectors, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_default_generator_follows_the_global_seed() -> None:
    torch.manual_seed(7)
    first = symmetric_vectors(11, 3)
    assert not torch.allclose(first, symmetric_vectors(11, 3))
    torch.manual_seed(7)
    assert torch.equal(first, symmetric_vectors(11, 3))


def test_default_device_and_dtype_do_not_matter() -> None:
    expected = symmetric_vectors(11, 3, generator=seeded())
    with torch.device("meta"):
        vectors = [symmetric_vectors(11, 3, generator=seeded())]
        vectors += [
            symmetric_vectors(*shape, generator=seeded()) for shape in [(4, 9), (8, 5), (7, 2)]
        ]
        vectors += [symmetric_vectors(4, 2, like=vectors[1], generator=seeded())]
        vectors += [random_vectors(3, 3, "uniform", generator=seeded())]
    assert all(v.device.type == "cpu" and v.dtype == torch.float64 for v in vectors)
    assert torch.equal(vectors[0], expected)


@pytest.mark.parametrize("kind", sorted(VECTOR_KINDS))
def test_dtype_is_a_rounding_of_the_float64_vectors(kind: str) -> None:
    exact = class_vectors(kind, 10, 12, generator=seeded())
    rounded = class_vectors(kind, 10, 12, generator=seeded(), dtype=torch.float32)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, exact.float())


def test_random_vectors_follow_their_distribution() -> None:
    # With d = 2 the direction of a U(-1,1) square leans to the corners, a Gaussian's does not:
    # E[(xy)^2] over the directions is 1/8 for the circle and (pi - 2)/8 for the square.
    for distribution, expected in (("gaussian", 1 / 8), ("uniform", (math.pi - 2) / 8)):
        vectors = random_vectors(40_000, 2, distribution, generator=seeded())
        assert_unit_rows(vectors)
        assert vectors.mean(0).abs().max().item() < 0.02
        assert vectors.prod(dim=1).square().mean().item() == pytest.approx(expected, abs=2e-3)


def test_coulomb_energy_by_hand_and_as_torch_sees_it() -> None:
    square = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    energy = coulomb_energy(square)
    assert energy.dtype == torch.float64
    assert energy.dim() == 0
    assert energy.item() == pytest.approx(4 / math.sqrt(2) + 2 / 2, abs=1e-12)
    assert coulomb_energy(square[:1]).item() == 0.0
    assert coulomb_energy(square[[0, 0]]).item() == math.inf


@pytest.mark.parametrize(
    ("count", "dim", "error", "message"),
    [
        (0, 3, ValueError, "`num_vectors` must be at least 1, got 0"),
        (3, 0, ValueError, "`dim` must be at least 1, got 0"),
        (-2, 3, ValueError, "`num_vectors`"),
        (2.0, 3, TypeError, "`num_vectors` must be an integer, got 2.0"),
        (3, "8", TypeError, "`dim` must be an integer"),
        (True, 3, TypeError, "`num_vectors` must be an integer, got True"),
    ],
)
@pytest.mark.parametrize("kind", sorted(VECTOR_KINDS))
def test_bad_sizes(kind: str, count: int, dim: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        class_vectors(kind, count, dim)


def test_three_vectors_do_not_fit_in_one_dimension() -> None:
    with pytest.raises(ValueError, match="are all\\), got 3"):
        symmetric_vectors(3, 1)


@pytest.mark.parametrize(
    ("like", "error", "message"),
    [
        (torch.ones(4), ValueError, r"must be \(3, d0\).*got \(4,\)"),
        (torch.ones(4, 2), ValueError, r"must be \(3, d0\).*got \(4, 2\)"),
        (torch.ones(3, 0), ValueError, r"got \(3, 0\)"),
        (torch.tensor([[1.0], [math.nan], [1.0]]), ValueError, "finite"),
        (torch.tensor([[1.0], [math.inf], [1.0]]), ValueError, "finite"),
        (torch.tensor([[1.0], [1.0], [0.0]]), ValueError, "no row of zeros, got one in row 2"),
        (
            torch.ones(3, 2, dtype=torch.int64),
            TypeError,
            "floating point tensor, got torch.int64",
        ),
        ([[1.0], [1.0], [1.0]], TypeError, "floating point tensor, got list"),
    ],
    ids=["1-axis", "rows", "empty", "nan", "inf", "zero-row", "integer", "list"],
)
def test_bad_like(like: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        symmetric_vectors(3, 2, like=like)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'cauchy': use one of symmetric, gaussian, uniform"):
        class_vectors("cauchy", 3, 4)
    with pytest.raises(ValueError, match="'gaussian' or 'uniform', got 'symmetric'"):
        random_vectors(3, 4, "symmetric")


def test_bad_dtype_and_vectors() -> None:
    with pytest.raises(TypeError, match=r"floating point dtype, got torch\.int64"):
        symmetric_vectors(3, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"must be \(N, d\), got \(2, 3, 4\)"):
        coulomb_energy(torch.ones(2, 3, 4))


@pytest.mark.parametrize("length", [1e-170, 1e-14, 1.0, 1e170])
def test_given_vectors_of_any_length_are_directions(length: float) -> None:
    rows = torch.randn(3, 8, generator=seeded(), dtype=torch.float64)
    expected = rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(placed_vectors(length * rows, 3, 8), expected)
    layer = SpelaConv2d(
        1,
        3,
        3,
        2,
        output_size=(1, 2),
        symmetric_dim=8,
        grouping=2,
        vectors=length * rows.view(3, 1, 8).repeat(1, 2, 1),
    )
    torch.testing.assert_close(layer.vectors[:, 1], expected.float())


@pytest.mark.parametrize(("count", "largest"), [(1000, 0.27), (3000, 0.48)])
def test_many_vectors_take_bounded_work_and_are_better_than_random_ones(
    count: int,
    largest: float,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Multiply-adds of all pairs that are formed: some seconds of a core, said in the log."""
    work = 0.0

    def counted(rows: torch.Tensor) -> tuple[float, torch.Tensor]:
        nonlocal work
        work += len(rows) ** 2 * (rows.shape[1] + 30.0)
        return coulomb(rows)

    monkeypatch.setattr(symmetric, "coulomb", counted)
    generator = torch.Generator().manual_seed(0)
    vectors = symmetric_vectors(count, 64, generator=generator)
    assert work < 3e10  # twice the bound: a step of L-BFGS may look at its function again
    assert "takes some seconds" in caplog.text
    random = random_vectors(count, 64, "gaussian", generator=generator)
    closest = [float((v @ v.T).fill_diagonal_(-1).max()) for v in (vectors, random)]
    assert closest[0] == pytest.approx(largest, abs=0.02)
    assert closest[1] > 0.5


@pytest.mark.parametrize("factor", [1e-170, 1e160, 1e200])
def test_the_lengths_of_like_are_ignored(factor: float) -> None:
    like = torch.eye(3, dtype=torch.float64)
    made = symmetric_vectors(3, 4, like=like * factor, generator=seeded(0))
    assert torch.equal(made, symmetric_vectors(3, 4, like=like, generator=seeded(0)))


def test_further_vectors_are_at_right_angles_to_short_rows_too() -> None:
    rows = torch.tensor([[1e8, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 1e-30, 1e-30, 0.0]])
    made = further_vectors(rows, 1)
    assert (made @ torch.eye(4)[:3].T).abs().max() < 1e-6
