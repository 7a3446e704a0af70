"""Tile rules: within every GPU's limits, enough programs at small batches, and importable anywhere."""

from __future__ import annotations

from itertools import product

import pytest

from spela_kernels.gpu.architectures import ARCHITECTURES, Architecture, find_architecture
from spela_kernels.linear import configs
from spela_kernels.linear.configs import Problem

SIZES = (1, 10, 34, 50, 64, 65, 784, 1000, 1024, 4096)
PROBLEMS = [
    Problem(batch, inputs, outputs, classes, itemsize, weight_itemsize, all_classes)
    for batch, inputs, outputs in product((1, 16, 50, 64, 512, 8192), SIZES, SIZES)
    for classes, itemsize, weight_itemsize, all_classes in (
        (10, 4, 4, False),
        (10, 2, 2, True),
        (10, 2, 4, False),
        (1000, 4, 4, True),
    )
]


_TILE = ("block_b", "block_o", "block_c")


def pick_finalise(problem: Problem, arch: Architecture) -> tuple[configs.FinaliseConfig, ...]:
    return configs.pick_finalise(problem, arch, True)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_choice_fits_its_gpu(name: str) -> None:
    arch = ARCHITECTURES[name]
    for problem in PROBLEMS:
        for pick in (configs.pick_forward, pick_finalise, configs.pick_update):
            choices = pick(problem, arch)
            assert choices, (pick.__name__, problem)
            for config in choices:
                assert config.shared_bytes(problem) <= arch.shared_bytes, (config, problem)
                blocks = [v for k, v in vars(config).items() if k.startswith("block_")]
                # tl.dot wants 16 or more, arange powers of two.
                assert all(b & (b - 1) == 0 for b in blocks), config
                tile = {k: v for k, v in vars(config).items() if k in _TILE}
                assert all(16 <= side <= 128 for side in tile.values()), config


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_shared_memory_has_no_room_for_costs_stages_not_the_tile(name: str) -> None:
    arch = ARCHITECTURES[name]
    mixed = [Problem(b, i, o, 100, 2, 4, every) for b, i, o in product((50, 512, 8192), SIZES, SIZES)
             for every in (False, True)]  # fmt: skip
    for problem in (*PROBLEMS, *mixed):
        assert len(configs.pick_forward(problem, arch)) == 3, problem


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parts_of_the_reduced_axis_are_one_a_warp(name: str) -> None:
    arch = ARCHITECTURES[name]
    cut = [c for p in PROBLEMS for c in configs.pick_forward(p, arch) if c.parts > 1]
    assert bool(cut) == arch.matrix_units
    for config in cut:
        assert config.parts == config.num_warps
        assert config.block_i // config.parts in (16, 32)  # tl.dot wants 16
    whole = [c for p in PROBLEMS for c in configs.pick_forward(p, arch) if c.parts == 1]
    assert all(16 <= config.block_i <= 64 for config in whole)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_later_choices_ask_for_less(name: str) -> None:
    arch = ARCHITECTURES[name]
    for problem in PROBLEMS[::7]:
        for pick in (configs.pick_forward, configs.pick_update):
            sizes = [config.shared_bytes(problem) for config in pick(problem, arch)]
            assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("name", ["sm_75", "sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("batch", [32, 50, 64])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_small_batches_occupy_the_gpu(name: str, batch: int, itemsize: int) -> None:
    arch = ARCHITECTURES[name]
    problem = Problem(batch, 784, 1024, 10, itemsize, itemsize)
    forward = configs.pick_forward(problem, arch)[0]
    update = configs.pick_update(problem, arch)[0]
    # 1,024 columns in the narrowest tile of a product are 64 a row tile; MI300X has 304 units.
    most = 64 * -(-batch // 16)
    assert forward.programs(problem) >= min(0.75 * arch.multiprocessors, most)
    assert update.programs(problem) >= min(1.5 * arch.multiprocessors, 64 * 49)


def test_a_large_batch_gets_larger_tiles() -> None:
    arch = ARCHITECTURES["sm_90"]
    small, large = (
        configs.pick_forward(Problem(batch, 1024, 1024, 10, 2, 2), arch)[0] for batch in (50, 8192)
    )
    assert large.block_b * large.block_o >= 4 * small.block_b * small.block_o


@pytest.mark.parametrize(
    ("name", "row"),
    [("sm_87", "sm_86"), ("sm_103", "sm_100"), ("sm_121", "sm_120"), ("gfx950", "gfx942")],
)
def test_unlisted_gpus_take_an_older_relative(name: str, row: str) -> None:
    found = find_architecture(name, multiprocessors=7)
    assert (found.name, found.multiprocessors) == (row, 7)


def test_gpus_too_old_are_refused() -> None:
    with pytest.raises(ValueError, match="SPELA_BACKEND=reference"):
        find_architecture("sm_70")
