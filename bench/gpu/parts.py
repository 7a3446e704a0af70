"""The parts of the campaign in their order: what runs, for how long at most, and beside what."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PARTS", "Part", "chosen_waves"]


@dataclass(frozen=True)
class Part:
    """One part, which runs in a process of its own and may fail alone.

    Attributes:
        name: For `--part` and the report.
        call: Its function, module:name, called with `Rows` and `Setting`.
        limit: Seconds until it is killed.
        wave: Parts of one wave run side by side; those that time something have a wave to themselves.
        about: What its tables show, for the report.
        interpreted: Whether its dry run needs Triton's kernels, which the CPU then interprets.
    """

    name: str
    call: str
    limit: float
    wave: int
    about: str
    interpreted: bool = False


# What is worth most comes first. Limits of the waves add up to less than ten minutes.
PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part("card", "bench.gpu.card:measure", 60, 0, "The card, the driver and the versions."),
        Part(
            "tests", "bench.gpu.marked_tests:measure", 210, 0,
            "All tests marked gpu, on many processes; those that only print a speed are left out.",
        ),
        Part(
            "sanitizers", "bench.gpu.sanitizers:measure", 210, 0,
            "memcheck and racecheck of compute-sanitizer over the parity cases of both ops.",
            interpreted=True,
        ),
        Part(
            "training-cpu", "bench.gpu.training:on_the_cpu", 210, 0,
            "The runs of the part training on this machine's CPU, for their accuracy.",
        ),
        Part(
            "networks", "bench.gpu.networks:measure", 110, 1,
            "A training step of whole networks. Microseconds: eager is one call after the other; replayed is "
            "a CUDA graph; cold is a replay after the L2 cache was overwritten. GraphedStep is timed as it "
            "is called, its replay and what it copies in. The roofline is what the step's compulsory bytes "
            "take at the published bandwidth.",
        ),
        Part(
            "layers", "bench.gpu.layers:measure", 70, 2,
            "A layer's step, SGD with the log objective, and a projection's. Times as for networks; modelled "
            "is the cost model's time for the cold replay; shares are of a copy's measured bandwidth, of the "
            "published bandwidth and of the published peak of the products.",
            interpreted=True,
        ),
        Part(
            "counters", "bench.gpu.counters:measure", 40, 3,
            "Hardware counters of each kernel by ncu, beside the bytes of the cost model.",
        ),
        Part(
            "training", "bench.gpu.training:on_the_gpu", 60, 4,
            "Short runs, with the CPU's seeds and data; accuracy by layer in %, and its difference.",
        ),
        Part(
            "memory", "bench.gpu.memory:measure", 40, 5,
            "Peak memory of a step above what stays, and time: against depth, in blocks, of convolutions.",
        ),
        Part(
            "selftest", "bench.gpu.selftest:measure", 40, 6,
            "What `python -m spela_kernels.selftest` checks and measures, most of it in other parts too: "
            "verdicts, failures, figures.",
            interpreted=True,
        ),
    )
}  # fmt: skip


def chosen_waves(names: list[str] | None) -> list[list[Part]]:
    """The parts to run, wave by wave.

    Args:
        names: Of `PARTS`; None: all.

    Raises:
        ValueError: If a name is unknown.

    Example:
        >>> [[part.name for part in wave] for wave in chosen_waves(["layers", "card"])]
        [['card'], ['layers']]
    """
    unknown = [name for name in names or () if name not in PARTS]
    if unknown:
        raise ValueError(f"unknown part {unknown[0]!r}: use {', '.join(PARTS)}")
    chosen = [part for part in PARTS.values() if names is None or part.name in names]
    waves = sorted({part.wave for part in chosen})
    return [[part for part in chosen if part.wave == wave] for wave in waves]
