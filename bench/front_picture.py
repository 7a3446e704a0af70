"""The README's picture: peak memory of a training step against depth, and accuracy by epoch beside backprop.

    python -m bench.front_picture [--out docs/images/front.png]

Memory is measured here, at width 1024 and batch 512, with the library for products that takes most of it;
accuracy is read from the runs in docs/results.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spela.benchmarks.memory import MEMORY_VARIANTS, peak_bytes
from spela.benchmarks.network import NetworkCase
from spela.experiments.archive import find_run
from spela.training import read_evidence

RESULTS = Path(__file__).parents[1] / "docs" / "results"
DEPTHS = (2, 4, 8, 16, 32)
# Name in the benchmark, in the picture, and how its line can be told apart in grey.
METHODS = (
    ("backprop", "backprop", "C1", "s--"),
    ("both", "backprop, checkpointed, stepping in backward", "C7", "^:"),
    ("spela", "SPELA", "C0", "o-"),
)
ROWS = (
    ("backprop, settings of best", -1, "backprop, same settings", "C1", "--"),
    ("best", 0, "SPELA, layer 1", "C9", ":"),
    ("best", -1, "SPELA, layer 3", "C0", "-"),
)
FIRST_EPOCH = 3  # before it the range would be the first epoch's


def measured(depths: tuple[int, ...], width: int, batch: int) -> dict[str, list[float]]:
    """Peak MB of a step, by method of the benchmark."""
    cases = [NetworkCase((width,) * (depth + 1), batch) for depth in depths]
    return {
        name: [peak_bytes(MEMORY_VARIANTS[name](case)) / 1e6 for case in cases]
        for name, *_ in METHODS
    }


def curves(row: str) -> list[list[list[float]]]:
    """Test accuracy in % of every seed, epoch and layer of a row of the mlp experiment."""
    table = json.loads((RESULTS / "mlp.json").read_text(encoding="utf-8"))
    (found,) = (r for r in table["rows"] if (r["row"], r["data"]) == (row, "fashion-mnist"))
    runs = [read_evidence(find_run(RESULTS / "runs", key)) for key in found["finished"]]
    return [[[100 * a for a in r["test_accuracy"]] for r in run.records] for run in runs]


def _memory(axes: Axes, points: dict[str, list[float]]) -> None:
    for name, label, colour, style in METHODS:
        axes.plot(DEPTHS[: len(points[name])], points[name], style, color=colour, label=label, ms=5)
    axes.set_title("peak memory of a training step, MB", fontsize=11, loc="left")
    axes.set_xlabel("layers, 1024 wide, batch 512")
    axes.set_xticks(DEPTHS)


def _accuracy(axes: Axes) -> None:
    for row, layer, label, colour, style in ROWS:
        seeds = curves(row)
        by_epoch = [[seed[epoch][layer] for seed in seeds] for epoch in range(len(seeds[0]))]
        epochs = range(FIRST_EPOCH, len(by_epoch) + 1)
        shown = by_epoch[FIRST_EPOCH - 1 :]
        means = [sum(values) / len(values) for values in shown]
        axes.plot(epochs, means, style, color=colour, label=f"{label}: {means[-1]:.1f} %", lw=2)
        axes.fill_between(epochs, *map(list, zip(*((min(v), max(v)) for v in shown), strict=True)),
                          color=colour, alpha=0.15)  # fmt: skip
    axes.set_title(
        "test accuracy on Fashion-MNIST, %, mean and range of 3 seeds", fontsize=11, loc="left"
    )
    axes.set_xlabel(f"epoch, from {FIRST_EPOCH} on; the axis does not start at 0 %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def picture(points: dict[str, list[float]]) -> Figure:
    """The two panels.

    Args:
        points: From `measured`.
    """
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    memory, accuracy = figure.subplots(1, 2)
    _memory(memory, points)
    memory.set_ylim(bottom=0)
    _accuracy(accuracy)
    for axes in (memory, accuracy):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=9, frameon=False)
    return figure


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS.parent / "images" / "front.png")
    out = parser.parse_args().out
    # Who makes the products decides what they pack: of the choices this one takes most memory, twice `blas`.
    os.environ["SPELA_CPU_GEMM"] = "onednn"
    points = measured(DEPTHS, width=1024, batch=512)
    for name, label, *_ in METHODS:
        print(f"{label:<46}" + "".join(f"{value:8.1f}" for value in points[name]) + " MB")
    picture(points).savefig(out, dpi=120)
    print(out)


if __name__ == "__main__":
    main()
