"""`python -m bench.pipeline_model`: throughput against ranks of layer-parallel SPELA, GPipe and 1F1B.

A model, not a measurement: equal layers, contiguous stages, transfers that overlap with work. Every
assumption is an argument and is printed; `bench/schedules.py` holds the schedules and their sources.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass
from typing import NamedTuple

from bench.schedules import gpipe, most_held, one_forward_one_backward, simulate, spela

__all__ = ["Assumptions", "Row", "main", "model"]

METHODS = ("spela", "gpipe", "1f1b")


@dataclass(frozen=True)
class Assumptions:
    """What the model takes for granted; times in microseconds.

    Attributes:
        layers: Equal layers of the network.
        batch: Samples a step.
        forward_us: One layer's forward of a whole batch; in proportion for a micro-batch.
        overhead_us: Of every task of a stage, whatever its size: launches and calls.
        backward: A backprop layer's backward in forwards: 2, a product for the input's gradient and one
            for the weights'.
        local: A SPELA layer's gradient and update in forwards: 1, the product for the weights'.
        recompute: Backprop pipelines keep stage inputs only and run each forward twice (GPipe, section 2).
        micro_batches: Parts of a batch in GPipe and 1F1B; SPELA sends whole batches.
        width: Values of a layer's output for one sample.
        bytes: Of one value.
        latency_us: Of a transfer to the next stage.
        bandwidth_gbs: Of a transfer, 10^9 bytes a second.
        in_flight: SPELA batches on their way between two stages.
        synchronise: SPELA steps between two looks at the losses, each of which empties the pipeline.
    """

    layers: int = 16
    batch: int = 128
    forward_us: float = 500.0
    overhead_us: float = 20.0
    backward: float = 2.0
    local: float = 1.0
    recompute: bool = False
    micro_batches: int = 8
    width: int = 1024
    bytes: int = 4
    latency_us: float = 20.0
    bandwidth_gbs: float = 10.0
    in_flight: int = 4
    synchronise: int = 50


class Row(NamedTuple):
    """What the model says of one method on one number of ranks.

    Attributes:
        method: One of `METHODS`.
        ranks: Stages.
        samples_per_second: Throughput.
        bubble: Share of the slowest stage's time in which it waits.
        held_bytes: Activations a rank keeps beside the layer it works on.
    """

    method: str
    ranks: int
    samples_per_second: float
    bubble: float
    held_bytes: int


def model(method: str, ranks: int, given: Assumptions) -> Row:
    """Throughput, bubble and kept activations of one method.

    Args:
        method: spela, gpipe or 1f1b.
        ranks: Stages; the slowest holds ceil(layers / ranks) layers.
        given: The assumptions.

    Raises:
        ValueError: If the method is unknown, or there are more ranks than layers.

    Example:
        >>> free = Assumptions(overhead_us=0, latency_us=0, bandwidth_gbs=1e9, micro_batches=8)
        >>> round(model("gpipe", 4, free).bubble, 4) == round(3 / (8 + 3), 4)
        True
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: use one of {', '.join(METHODS)}")
    if not 1 <= ranks <= given.layers:
        raise ValueError(f"{given.layers} layers make 1 to {given.layers} stages, got {ranks}")
    layers = math.ceil(given.layers / ranks)
    output = given.batch * given.width * given.bytes  # bytes of one layer's output
    if method == "spela":
        steps = batches = given.synchronise
        schedule, part = spela(ranks, batches), 1.0
        forward, backward = layers * given.forward_us * (1 + given.local) + given.overhead_us, 0.0
        # Queues on both sides of a stage; a single stage has none.
        held = 2 * given.in_flight * output if ranks > 1 else 0
    else:
        steps, batches = 1, given.micro_batches
        build = gpipe if method == "gpipe" else one_forward_one_backward
        schedule, part = build(ranks, batches), 1 / batches
        work = layers * given.forward_us * part
        forward = work + given.overhead_us
        backward = work * (given.backward + given.recompute) + given.overhead_us
        kept = 1 if given.recompute else layers
        held = math.ceil(most_held(schedule) * part * kept * output)
    transfer = given.latency_us + part * output / (1e3 * given.bandwidth_gbs)
    time = simulate(schedule, forward, backward, transfer)
    busy = batches * (forward + backward)
    return Row(method, ranks, 1e6 * steps * given.batch / time, 1 - busy / time, held)


def main() -> None:
    """Print the assumptions and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--ranks", default="1,2,4,8,16", help="numbers of stages")
    for name, value in asdict(Assumptions()).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=type(value), default=value)
    values = vars(parser.parse_args())
    ranks = [int(number) for number in values.pop("ranks").split(",")]
    given = Assumptions(**values)
    print("A model, not a measurement. Assumptions:")
    print("  " + "  ".join(f"{name}={value}" for name, value in asdict(given).items()))
    print(
        "  stages of equal layers; transfers overlap with work; SPELA sends an output when its stage's\n"
        "  step is done; backprop synchronises after every batch, SPELA after `synchronise` of them"
    )
    print(
        f"{'ranks':>5}  {'method':<6}{'samples/s':>12}{'speed-up':>10}{'bubble':>8}{'kept MB':>10}"
    )
    first = {method: model(method, 1, given).samples_per_second for method in METHODS}
    for number in ranks:
        for method in METHODS:
            row = model(method, number, given)
            print(
                f"{number:>5}  {method:<6}{row.samples_per_second:>12,.0f}"
                f"{row.samples_per_second / first[method]:>10.2f}{row.bubble:>8.1%}"
                f"{row.held_bytes / 1e6:>10.1f}"
            )


if __name__ == "__main__":
    main()
