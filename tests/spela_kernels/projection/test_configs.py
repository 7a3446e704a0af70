"""The projection's tile rules: within every GPU's limits, enough programs, importable anywhere."""

from __future__ import annotations

from itertools import product

import pytest

from spela_kernels.gpu.architectures import ARCHITECTURES
from spela_kernels.projection import configs
from spela_kernels.projection.configs import LARGEST_DIM, Problem

PICKS = (configs.pick_forward, configs.pick_gradient, configs.pick_update)
PROBLEMS = [
    Problem(batch, kernels, size, dim, groups, classes, itemsize)
    for batch, kernels, size, dim in product(
        (1, 50, 64, 512), (1, 128, 512), (1, 16, 169, 900, 4096), (1, 10, 100, 129, LARGEST_DIM)
    )
    for (groups, classes), itemsize in product(((1, 1), (9, 10), (99, 1000)), (2, 4))
]
AUTHORS = [Problem(64, 128, size, 100, 9, 10, 4) for size in (900, 169)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_choice_fits_its_gpu(name: str) -> None:
    arch = ARCHITECTURES[name]
    for problem in PROBLEMS:
        for pick in PICKS:
            choices = pick(problem, arch)
            assert choices, (pick.__name__, problem)
            for config in choices:
                assert config.shared_bytes(problem) <= arch.shared_bytes, (config, problem)
                blocks = {k: v for k, v in vars(config).items() if k.startswith("block_")}
                # tl.dot wants 16 or more, arange powers of two.
                assert all(b & (b - 1) == 0 for b in blocks.values()), config
                assert all(b >= 16 for k, b in blocks.items() if k != "block_g"), config


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_whole_axes_are_covered(name: str) -> None:
    """p's row lies in one tile, for its norm; a sample's classes too, for their softmax."""
    for problem in PROBLEMS:
        arch = ARCHITECTURES[name]
        assert all(c.block_e >= problem.dim for c in configs.pick_forward(problem, arch))
        assert all(c.block_e >= problem.dim for c in configs.pick_gradient(problem, arch))
        (classes,) = configs.pick_classes(problem, arch)
        assert classes.block_c >= problem.classes
        assert classes.block_k * classes.block_c <= max(2048, classes.block_c)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_later_choices_ask_for_less(name: str) -> None:
    arch = ARCHITECTURES[name]
    for problem in PROBLEMS[::7]:
        for pick in PICKS:
            sizes = [config.shared_bytes(problem) for config in pick(problem, arch)]
            assert sizes == sorted(sizes, reverse=True), (pick.__name__, problem)


@pytest.mark.parametrize("name", ["sm_75", "sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("problem", AUTHORS, ids=["30x30", "13x13"])
def test_the_authors_layers_occupy_the_gpu(name: str, problem: Problem) -> None:
    arch = ARCHITECTURES[name]
    forward = configs.pick_forward(problem, arch)[0]
    update = configs.pick_update(problem, arch)[0]
    assert forward.programs(problem) >= 1.5 * arch.multiprocessors
    assert update.programs(problem) >= 1.25 * arch.multiprocessors
