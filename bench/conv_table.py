"""`python -m bench.conv_table`: a convolution layer's step, time and peak memory, against autograd.

Each variant runs in a process of its own, so that one's memory does not hide in another's; times are
medians over rounds in which all variants take turns. Peak memory is of what torch's allocator hands out.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import torch

from spela.benchmarks.convolution import CONV_CASES, CONV_VARIANTS, make_conv_step
from spela.benchmarks.memory import peak_bytes

__all__ = ["main", "measure"]

# The floor computes no loss, and its products alone hold no state.
VARIANTS = tuple(name for name in CONV_VARIANTS if name != "floor")


def measure(variant: str, case: str, repeats: int) -> None:
    """Print the median seconds of a step and the peak bytes it needs above what stays.

    Args:
        variant: One of `VARIANTS`.
        case: One of `CONV_CASES`.
        repeats: Timed steps after two that warm up.
    """
    step = make_conv_step(variant, CONV_CASES[case])
    memory = peak_bytes(step)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
    print(statistics.median(seconds), memory, float(loss))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=list(CONV_CASES), default="64x3x64x64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of a round")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        measure(arguments.variant, arguments.case, arguments.repeats)
        return
    results: dict[str, list[list[float]]] = {variant: [] for variant in VARIANTS}
    for _ in range(arguments.rounds):
        for variant, rows in results.items():
            command = [sys.executable, "-m", "bench.conv_table", "--variant", variant]
            command += ["--case", arguments.case, "--repeats", str(arguments.repeats)]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rows.append([float(word) for word in text.split()])
    losses = {variant: rows[0][2] for variant, rows in results.items()}
    spread = max(losses.values()) - min(losses.values())
    assert spread < 1e-3 * abs(losses["spela"]) + 1e-4, f"variants disagree: {losses}"
    best = {v: (statistics.median(r[0] for r in rows), rows[0][1]) for v, rows in results.items()}
    ours = best["spela"]
    print(f"{arguments.case}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'variant':<20}{'ms':>10}{'ratio':>8}{'MB':>10}{'ratio':>8}")
    for variant, (seconds, memory) in best.items():
        print(
            f"{variant:<20}{1e3 * seconds:>10.1f}{seconds / ours[0]:>8.2f}"
            f"{memory / 1e6:>10.1f}{memory / ours[1]:>8.2f}"
        )


if __name__ == "__main__":
    main()
