"""`python -m bench.distributed_table`: training steps in one process and in two, samples/s and memory a rank.

Variants take turns over the rounds, in processes of their own; speeds are medians, memory the first round's.
The first round's losses are compared before a speed is printed: layer-parallel must give one process's to
the bit (one thread each), the others to rounding. Memory is read from /proc: Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from spela.benchmarks.resident import peak_resident_bytes, resident_bytes, restart_peak
from spela.distributed import DataParallelSequential, LayerParallelSequential, Ranks
from spela.experiments import build_network, build_optimizer, make_config
from spela.network import SpelaSequential

__all__ = ["VARIANTS", "main", "measure"]

# Name: processes, threads of each, form.
VARIANTS = {
    "1 process, 2 threads": (1, 2, ""),
    "1 process, 1 thread": (1, 1, ""),
    "2 processes, data-parallel": (2, 1, "data"),
    "2 processes, layer-parallel": (2, 1, "layers"),
}
SHAPE = (1, 28, 28)
CLASSES = 10


def _network(form: str, net: SpelaSequential, ranks: Ranks | None) -> SpelaSequential:
    if ranks is None:
        return net
    if form == "data":
        return DataParallelSequential(net, ranks)
    return LayerParallelSequential(net, ranks, SHAPE)


def measure(form: str, threads: int, layers: tuple[int, ...], batch: int, steps: int) -> None:
    """Print one process's figures as a line of JSON.

    Args:
        form: data or layers (under torchrun), or empty.
        threads: Of this process.
        layers: Output sizes of the linear layers.
        batch: Samples of a joint batch.
        steps: Timed, after five that warm up.
    """
    torch.set_num_threads(threads)
    ranks = Ranks.join("cpu") if form else None
    before = resident_bytes()
    config = make_config("random pixels", "best", layers=layers, batch_size=batch)
    built = build_network(config, SHAPE, CLASSES)
    assert isinstance(built, SpelaSequential)
    net = _network(form, built, ranks)
    held = [p for p in net.parameters() if not p.is_meta]
    optimizer = build_optimizer(config, nn.ParameterList(held))
    g = torch.Generator().manual_seed(0)
    x = [torch.rand(batch, *SHAPE, generator=g) for _ in range(4)]
    y = [torch.randint(CLASSES, (batch,), generator=g) for _ in range(4)]
    torch.manual_seed(0)

    def train(count: int) -> Tensor:
        """Mean losses (L,) of some steps, summed over the processes: they end together."""
        if isinstance(net, LayerParallelSequential):
            net.expect([batch] * count)
        total = torch.zeros(len(layers), dtype=torch.float64)
        for step in range(count):
            total += net.local_step(x[step % 4], y[step % 4], optimizer)
        return (total if ranks is None else ranks.sum(total)) / count

    train(5)
    restart_peak()
    start = time.perf_counter()
    losses = train(steps)
    seconds = time.perf_counter() - start
    own = {
        "rank": 0 if ranks is None else ranks.rank,
        "samples_per_second": steps * batch / seconds,
        "training_bytes": peak_resident_bytes() - before,
        "state_bytes": sum(
            t.numel() * t.element_size()
            for p in held
            for t in [p, *optimizer.state[p].values()]
            if isinstance(t, Tensor)
        ),
        "losses": losses.tolist(),
    }
    print(json.dumps(own), flush=True)
    if ranks is not None:
        ranks.leave()


def _run(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One round of one variant: a record of each rank."""
    processes, threads, _ = VARIANTS[name]
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command = [*launcher, "-m", "bench.distributed_table", "--variant", name]
    command += ["--layers", arguments.layers, "--batch-size", str(arguments.batch_size)]
    command += ["--steps", str(arguments.steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        sys.exit(f"{name} failed:\n{done.stderr}")
    found = [json.loads(line) for line in re.findall(r"\{.*?\}", done.stdout)]
    return sorted(found, key=lambda record: record["rank"])


def _check(losses: dict[str, list[float]]) -> None:
    one = losses["1 process, 1 thread"]
    if losses["2 processes, layer-parallel"] != one:
        sys.exit(f"layer-parallel is not one process to the bit: {losses}")
    for name, values in losses.items():
        torch.testing.assert_close(values, one, rtol=1e-3, atol=1e-4, msg=f"{name} differs")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--layers", default="1024,1024,1024,1024")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--steps", type=int, default=200, help="timed steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variant", choices=list(VARIANTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    layers = tuple(int(size) for size in arguments.layers.split(","))
    if arguments.variant:
        _, threads, form = VARIANTS[arguments.variant]
        measure(form, threads, layers, arguments.batch_size, arguments.steps)
        return
    results: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.rounds):
        for name, rounds in results.items():
            rounds.append(_run(name, arguments))
    _check({name: rounds[0][0]["losses"] for name, rounds in results.items()})
    print(
        f"784-{arguments.layers.replace(',', '-')}, recipe best (Adam, dropout), batch "
        f"{arguments.batch_size}, {arguments.steps} steps, median of {arguments.rounds} rounds, "
        f"{os.cpu_count()} cores, torch {torch.__version__}"
    )
    print(
        f"{'variant':<29}{'samples/s':>11}{'ratio':>7}  memory a rank: training (of it weights and state), MB"
    )
    first = 0.0
    for name, rounds in results.items():
        # Ranks end together; the slowest decides.
        speed = statistics.median(
            min(record["samples_per_second"] for record in ranks) for ranks in rounds
        )
        first = first or speed
        memory = "; ".join(
            f"{record['training_bytes'] / 1e6:.0f} ({record['state_bytes'] / 1e6:.0f})"
            for record in rounds[0]
        )
        print(f"{name:<29}{speed:>11,.0f}{speed / first:>7.2f}  {memory}")


if __name__ == "__main__":
    main()
