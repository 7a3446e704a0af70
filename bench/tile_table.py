"""`python -m bench.tile_table`: the tiles that the rules choose for the paper's shapes, on every GPU.

For a linear layer the steps of 784-1024-10 and 1000-34 at batch 50, for a projection 128 kernels of the
28 x 28 and 32 x 32 networks at batch 64, ten classes. The rules are pure Python, so this runs anywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any

from spela_kernels.gpu.architectures import ARCHITECTURES, Architecture
from spela_kernels.linear import configs as linear
from spela_kernels.projection import configs as projection

__all__ = ["main", "rows"]

LAYERS = ((784, 1024), (1024, 10), (784, 1000), (1000, 34), (1024, 1024))
MAPS = (144, 16, 196, 25)  # D of both layers of each network


def _linear(itemsize: int, arch: Architecture) -> Iterator[tuple[str, str, Any, Any]]:
    for inputs, outputs in LAYERS:
        problem = linear.Problem(50, inputs, outputs, 10, itemsize, 4)
        shape = f"{inputs} -> {outputs}"
        yield shape, "forward", problem, linear.pick_forward(problem, arch)[0]
        yield shape, "finalise", problem, linear.pick_finalise(problem, arch, False)[0]
        yield shape, "update", problem, linear.pick_update(problem, arch)[0]


def _projection(itemsize: int, arch: Architecture) -> Iterator[tuple[str, str, Any, Any]]:
    for size in MAPS:
        problem = projection.Problem(64, 128, size, 100, 9, 10, itemsize)
        shape = f"128 x {size} -> 100"
        yield shape, "forward", problem, projection.pick_forward(problem, arch)[0]
        yield shape, "gradient", problem, projection.pick_gradient(problem, arch)[0]
        yield shape, "update", problem, projection.pick_update(problem, arch)[0]


def rows(itemsize: int, arch: Architecture) -> list[tuple[str, str, str, int]]:
    """Shape, kernel, tile and programs of each launch.

    Args:
        itemsize: Bytes an element of the layer's input: 4, or 2 under float32 weights.
        arch: The GPU.

    Example:
        >>> rows(4, ARCHITECTURES["sm_80"])[0]
        ('784 -> 1024', 'forward', 'b 32, o 16, i 256, c 16; 8 warps, 1 stages, tf32x3', 128)
    """
    found = []
    for shape, kernel, problem, config in (*_linear(itemsize, arch), *_projection(itemsize, arch)):
        fields = dataclasses.asdict(config)
        tile = ", ".join(f"{k[6:]} {v}" for k, v in fields.items() if k.startswith("block_"))
        how = f"{tile}; {fields['num_warps']} warps, {fields['num_stages']} stages, {fields['precision']}"
        found.append((shape, kernel, how, config.programs(problem)))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--itemsize", type=int, choices=(2, 4), default=4, help="bytes of an input")
    given = parser.parse_args(arguments)
    print("| GPU | layer | kernel | tile | programs |\n|---|---|---|---|---|")
    for name in given.targets:
        for row in rows(given.itemsize, ARCHITECTURES[name]):
            print("|", " | ".join((name, *map(str, row))), "|")


if __name__ == "__main__":
    main()
