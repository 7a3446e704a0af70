"""`python -m bench.crossing_table`: up to which size is a step in one compiled call faster than operators?

Networks I-O-O of two linear layers, steps of B samples: the whole step in one call
(`spela_kernels.linear.steps`), beside the same step operator by operator, and its four matrix products
alone by torch (the floor); medians of turns. With the cheapest rows and update (`log`, LeakyReLU, SGD)
and with those of the recipe `best` (`softmax`, GELU, a norm, Adam).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

from spela import RowNorm, SpelaLinear, SpelaSequential, keep_freed_memory, optim
from spela_kernels.linear import steps

__all__ = ["main"]

SHAPES = (
    (64, 100, 50),
    (64, 100, 200),
    (784, 100, 50),
    (784, 100, 100),
    (784, 100, 200),
    (784, 256, 50),
    (784, 256, 100),
    (784, 512, 50),
    (784, 1024, 50),
    (1024, 1024, 50),
    (784, 1024, 128),
    (784, 1024, 512),
)
# Multiply-adds of a turn, about: several steps, as a user trains.
_A_TURN = 30_000_000


def _network(
    inputs: int, outputs: int, cheap: bool
) -> tuple[SpelaSequential, torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(0)
    objective, activation = ("log", "leaky_relu") if cheap else ("softmax", "gelu")
    layers: list[torch.nn.Module] = [
        SpelaLinear(
            size, outputs, 10, objective=objective, activation=activation, generator=generator
        )
        for size in (inputs, outputs)
    ]
    if not cheap:
        layers.insert(1, RowNorm("rms"))
    net = SpelaSequential(*layers)
    if cheap:
        return net, optim.LocalSGD(net.parameters(), lr=0.1)
    return net, optim.LocalAdam(net.parameters(), lr=1e-3)


def _milliseconds(inputs: int, outputs: int, batch: int, cheap: bool, turns: int) -> list[float]:
    """Of a step by operators, and in one call."""
    count = max(3, _A_TURN // (batch * inputs * outputs))
    x = torch.randn(count * batch, inputs, generator=torch.Generator().manual_seed(0))
    target = torch.arange(len(x)) % 10
    usual = steps.LARGEST
    variants = [
        (0, *_network(inputs, outputs, cheap)),
        (1 << 40, *_network(inputs, outputs, cheap)),
    ]
    found: list[list[float]] = [[], []]
    try:
        for _ in range(turns):
            for times, (limit, net, optimizer) in zip(found, variants, strict=True):
                steps.LARGEST = limit
                start = time.perf_counter()
                net.local_steps(x, target, optimizer, batch)
                times.append(1e3 * (time.perf_counter() - start) / count)
    finally:
        steps.LARGEST = usual
    return [statistics.median(times[turns // 4 :]) for times in found]


def _products(inputs: int, outputs: int, batch: int, turns: int) -> float:
    """Milliseconds of what a step multiplies: both layers' outputs and weight gradients."""
    x, y = torch.randn(batch, inputs), torch.randn(batch, outputs)
    first, second = torch.randn(inputs, outputs), torch.randn(outputs, outputs)
    count = max(3, _A_TURN // (batch * inputs * outputs))
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        for _ in range(count):
            torch.mm(x, first)
            torch.mm(x.T, y)
            torch.mm(y, second)
            torch.mm(y.T, y)
        times.append(1e3 * (time.perf_counter() - start) / count)
    return statistics.median(times[turns // 4 :])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table.

    Args:
        arguments: Of the command line; None: the process's.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=20)
    turns = parser.parse_args(arguments).turns
    print(f"{torch.get_num_threads()} threads; ms a step by operators / in one call (ratio)\n")
    print(
        "| I-O-O, batch | multiply-adds | products | log, LeakyReLU, SGD | softmax, GELU, norm, Adam |"
    )
    print("|---|---|---|---|---|")
    for inputs, outputs, batch in SHAPES:
        cells = [f"{_products(inputs, outputs, batch, turns):.3f}"]
        for cheap in (True, False):
            apart, whole = _milliseconds(inputs, outputs, batch, cheap, turns)
            cells.append(f"{apart:.3f} / {whole:.3f} ({whole / apart:.2f})")
        size = inputs * outputs * batch / 2**20
        print(
            f"| {inputs}-{outputs}-{outputs}, {batch} | {size:.1f} Mi | {' | '.join(cells)} |",
            flush=True,
        )


if __name__ == "__main__":
    # The process is ours here, and set as the command line's is; `main` leaves a caller's alone.
    keep_freed_memory()
    torch.set_flush_denormal(True)
    main()
