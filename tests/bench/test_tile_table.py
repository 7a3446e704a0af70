"""The table of tiles shows what the launches would use."""

from __future__ import annotations

import pytest

from bench.tile_table import main
from spela_kernels.gpu.architectures import ARCHITECTURES
from spela_kernels.linear.configs import Problem, pick_update


def test_every_gpu_has_a_tile_for_each_launch_of_the_papers_shapes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(ARCHITECTURES) * (5 + 4) * 3
    main(["--targets", "sm_90", "--itemsize", "2"])
    shown = capsys.readouterr().out.splitlines()[2:]
    assert len(shown) == 27
    config = pick_update(Problem(50, 784, 1024, 10, 2, 4), ARCHITECTURES["sm_90"])[0]
    tile = f"o {config.block_o}, i {config.block_i}, b {config.block_b}"
    assert shown[2].startswith(f"| sm_90 | 784 -> 1024 | update | {tile}; {config.num_warps} warps")
