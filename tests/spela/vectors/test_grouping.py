"""Class grouping: onto, seeded, in its range; and the vectors of the groups."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import product

import pytest
import torch
from torch import Tensor

from spela import class_grouping
from spela.vectors import Groups, group_vectors, most_groups


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("classes", "groups", "counts"),
    [
        (10, None, set(range(2, 10))),
        (10, (3, 5), {3, 4}),
        (10, 10, {10}),
        (7, 1, {1}),
        (3, None, {2}),
        (2, None, {2}),
        (1, None, {1}),
    ],
)
def test_every_group_of_every_kernel_has_a_class(
    classes: int, groups: Groups, counts: set[int]
) -> None:
    grouping = class_grouping(400, classes, groups, generator=_generator())
    assert grouping.shape == (400, classes)
    assert grouping.dtype == torch.int64
    seen = set()
    for row in grouping:
        used = row.unique().tolist()
        assert used == list(range(len(used)))
        seen.add(len(used))
    assert seen == counts
    assert most_groups(groups, classes) == max(counts)


def test_a_generator_decides_and_kernels_differ() -> None:
    first = class_grouping(50, 10, generator=_generator())
    assert torch.equal(first, class_grouping(50, 10, generator=_generator()))
    assert not torch.equal(first, class_grouping(50, 10, generator=_generator(1)))
    assert len(first.unique(dim=0)) == 50


@pytest.mark.parametrize(("classes", "count"), [(1, 1), (4, 1), (3, 2), (4, 3), (5, 3), (4, 4)])
def test_every_surjection_is_as_likely_as_any_other(classes: int, count: int) -> None:
    onto = [f for f in product(range(count), repeat=classes) if len(set(f)) == count]
    draws = 400 * len(onto)
    grouping = class_grouping(draws, classes, count, generator=_generator())
    seen = Counter(map(tuple, grouping.tolist()))
    assert seen.keys() == set(onto)
    squared = sum((seen[f] - 400) ** 2 / 400 for f in onto)
    freedom = len(onto) - 1  # chi-square: mean `freedom`, variance twice that
    assert squared < freedom + 4 * math.sqrt(2 * freedom) + 1e-9


def test_groups_of_one_class_are_as_frequent_as_among_all_surjections() -> None:
    # C = 10, g = 3: of 55,980 surjections 15,030 have a group of one class; 40,000 draws, 4 deviations.
    grouping = class_grouping(40_000, 10, 3, generator=_generator())
    sizes = torch.nn.functional.one_hot(grouping, 3).sum(dim=1)
    share = (sizes == 1).any(dim=1).double().mean()
    expected = 3 * 10 * (2**9 - 2) - 3 * 10 * 9  # those with two such groups were counted twice
    assert expected == 15_030
    assert abs(share - expected / 55_980) < 4 * math.sqrt(0.27 * 0.73 / 40_000)


def test_many_classes_in_any_number_of_groups() -> None:
    # P(class 0 is alone) = g S(C-1, g-1) / (g S(C-1, g-1) + g S(C-1, g)), from exact integers.
    for classes, count in ((1200, 2), (1200, 1199), (300, 150)):
        grouping = class_grouping(2000, classes, count, generator=_generator())
        assert torch.equal(grouping.amax(dim=1), torch.full((2000,), count - 1))
        sizes = torch.stack([torch.bincount(row, minlength=count) for row in grouping])
        assert int(sizes.min()) >= 1
        expected = _stirling(classes - 1, count - 1) / _stirling(classes, count)
        alone = sizes.gather(1, grouping[:, :1]).eq(1).double().mean()
        assert abs(alone - float(expected)) < 4 * math.sqrt(expected * (1 - expected) / 2000) + 1e-9


def _stirling(size: int, blocks: int) -> Fraction:
    signed = ((-1) ** j * math.comb(blocks, j) * (blocks - j) ** size for j in range(blocks + 1))
    return Fraction(sum(signed), math.factorial(blocks))


def test_classes_fall_into_groups_evenly() -> None:
    # 20,000 kernels, g = 3: P(two given classes share a group) is the same for every pair of classes
    # and P(class 0 in group j) = 1/3, standard error 0.0033.
    grouping = class_grouping(20_000, 5, 3, generator=_generator())
    for label in range(5):
        shares = torch.bincount(grouping[:, label], minlength=3) / 20_000
        assert (shares - 1 / 3).abs().max() < 4 * 0.0034
    together = torch.stack(
        [(grouping[:, a] == grouping[:, b]).double().mean() for a in range(5) for b in range(a)]
    )
    assert together.max() - together.min() < 6 * 0.0034


def test_a_given_grouping_is_copied() -> None:
    given = class_grouping(4, 6, generator=_generator())
    kept = class_grouping(4, 6, given)
    assert torch.equal(kept, given)
    given[0, 0] = 99
    assert kept[0, 0] != 99
    assert most_groups(kept, 6) == int(kept.max()) + 1


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (0, ValueError, r"`groups` must be 1\.\.4"),
        (5, ValueError, r"`groups` must be 1\.\.4"),
        ((3, 3), ValueError, "low < high"),
        ((2, 6), ValueError, "high <= 5"),
        (torch.zeros(2, 4).long(), ValueError, r"must be \(3, 4\)"),
        (torch.zeros(3, 4), TypeError, "must be int64"),
        (
            torch.tensor([[0, 1, 1, 0], [0, 2, 2, 0], [0, 0, 0, 0]]),
            ValueError,
            r"kernel 1 .* \[0, 2",
        ),
        (torch.tensor([[0, 1, 1, 0], [1, 2, 2, 1], [0, 0, 0, 0]]), ValueError, "kernel 1 uses"),
        (torch.tensor([[0, 1, -1, 0]] * 3), ValueError, "kernel 0 uses"),
    ],
)
def test_bad_groups(groups: Groups, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        class_grouping(3, 4, groups)


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="`num_kernels` must be at least 1"):
        class_grouping(0, 4)
    with pytest.raises(ValueError, match="`num_classes` must be at least 1"):
        class_grouping(3, 0)


def _cosines(vectors: Tensor) -> Tensor:
    return (vectors @ vectors.T)[~torch.eye(len(vectors), dtype=torch.bool)]


def test_symmetric_vectors_are_simplices_in_orientations_of_their_own() -> None:
    counts = [2, 5, 1, 5]
    vectors = group_vectors("symmetric", counts, 6, 5, generator=_generator())
    assert vectors.shape == (4, 5, 6)
    for own, count in zip(vectors, counts, strict=True):
        torch.testing.assert_close(own[:count].norm(dim=1), torch.ones(count).double())
        assert not own[count:].any()
        cosines = _cosines(own[:count])
        torch.testing.assert_close(cosines, torch.full_like(cosines, -1 / max(1, count - 1)))
    assert (vectors[1] - vectors[3]).abs().max() > 0.1
    again = group_vectors("symmetric", counts, 6, 5, generator=_generator())
    assert torch.equal(vectors, again)


def test_more_vectors_than_a_simplex_has_keep_one_geometry() -> None:
    vectors = group_vectors("symmetric", [7, 7], 3, 7, generator=_generator())
    first, second = _cosines(vectors[0]), _cosines(vectors[1])
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)
    assert (vectors[0] - vectors[1]).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_random_vectors_differ_in_every_kernel(kind: str) -> None:
    vectors = group_vectors(kind, [3, 3], 8, 4, generator=_generator())
    torch.testing.assert_close(vectors[:, :3].norm(dim=2), torch.ones(2, 3).double())
    assert not vectors[:, 3:].any()
    assert (_cosines(vectors[0, :3]) - _cosines(vectors[1, :3])).abs().max() > 0.01
