"""The groups of `spela bench`: what each measures, as rows of one table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from spela.benchmarks.blocks import NETWORK_SIZES, block_points
from spela.benchmarks.busy import BUSY_CASES, BUSY_VARIANTS, busy_processes, on_one_thread
from spela.benchmarks.clock import interleaved_medians
from spela.benchmarks.cnn import CNN_CASE, CNN_VARIANTS
from spela.benchmarks.convolution import CONV_CASES, CONV_VARIANTS, check_conv_parity
from spela.benchmarks.epoch import EPOCH_VARIANTS, epoch_data
from spela.benchmarks.memory import MEMORY_VARIANTS, SHAPES, memory_points, resident_bytes_of
from spela.benchmarks.network import NETWORK_CASES, VARIANTS, NetworkCase, check_parity
from spela.benchmarks.scaling import AXES, fitted_exponent, measure_axis
from spela.benchmarks.small import SMALL_DATA, fit_steps
from spela.vectors import symmetric_vectors

__all__ = ["GROUPS", "Row", "groups_of", "run_groups"]


_TURN = 10  # steps in a row, as a user trains


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        group: A key of `GROUPS`.
        case: What was run.
        variant: By whom; spela is ours.
        value: The figure.
        unit: ms, MB (10^6 bytes), or exponent.
        ratio: The figure over ours in the same case: above 1, ours is smaller. None: nothing to compare.
    """

    group: str
    case: str
    variant: str
    value: float
    unit: str
    ratio: float | None


def _rows(
    group: str, case: str, values: dict[str, float], unit: str, ours: str = "spela"
) -> list[Row]:
    base = values.get(ours)
    return [
        Row(group, case, name, value, unit, value / base if base else None)
        for name, value in values.items()
    ]


def _milliseconds(
    group: str,
    case: str,
    steps: Mapping[str, Callable[[], object]],
    budget: float,
    device: str,
    least: int = 5,
    turn: int = 1,
) -> list[Row]:
    times = interleaved_medians(steps, budget, least, device, turn)
    return _rows(group, case, {name: 1e3 * t for name, t in times.items()}, "ms")


def _network(quick: bool, device: str) -> list[Row]:
    rows = []
    for case in (replace(case, device=device) for case in NETWORK_CASES):
        check_parity(case)
        names = [n for n in VARIANTS if not (quick and n == "backprop_compiled")]
        steps = {name: VARIANTS[name](case) for name in names}
        budget = 3 if quick else 20
        rows += _milliseconds("network_step", case.name, steps, budget, device)
        if device == "cpu" and not quick:  # a GPU's turns are of many steps as it is
            name = f"{case.name}, {_TURN} steps a turn"
            rows += _milliseconds("network_step", name, steps, budget, device, turn=_TURN)
    cnn = replace(CNN_CASE, device=device)
    steps = {name: make(cnn) for name, make in CNN_VARIANTS.items()}
    rows += _milliseconds("network_step", cnn.name, steps, 1 if quick else 20, device)
    return rows


def _layer(quick: bool, device: str) -> list[Row]:
    rows = []
    for sizes in ((784, 1024), (1024, 1024)):
        for batch in (50, 512):
            case = NetworkCase(sizes, batch, device=device)
            check_parity(case)
            names = ("spela", "floor", "autograd_spela", "spela_adam", "autograd_spela_adam")
            steps = {name: VARIANTS[name](case) for name in names}
            rows += _milliseconds("layer_step", case.name, steps, 1 if quick else 6, device)
    for classes in (10, 100, 1000):
        if quick and classes > 10:
            continue
        cases = {
            name: NetworkCase(
                (1024, 1024), 128, objective=objective, classes=classes, device=device
            )
            for name, objective in (("spela", "log"), ("spela_softmax", "softmax"))
        }
        steps = {name: VARIANTS["spela"](case) for name, case in cases.items()}
        where = f"1024-1024/b128, {classes} classes"
        rows += _milliseconds("layer_step", where, steps, 1 if quick else 6, device)
    for name, case_on_cpu in CONV_CASES.items():
        conv = replace(case_on_cpu, device=device)
        if quick and conv.pixels > 28:
            continue
        check_conv_parity(conv)
        conv_steps = {variant: make(conv) for variant, make in CONV_VARIANTS.items()}
        rows += _milliseconds("layer_step", f"conv {name}", conv_steps, 2 if quick else 30, device)
    return rows


def _epoch(quick: bool, device: str) -> list[Row]:
    name, x, y = epoch_data(6_000 if quick else 60_000, device)
    epochs = {variant: make(x, y) for variant, make in EPOCH_VARIANTS.items()}
    case = f"784-1024-10/b50, {len(x):,} of {name}"
    return _milliseconds("epoch", case, epochs, 1.0, device, least=3)


def _memory(quick: bool, device: str) -> list[Row]:
    rows: list[Row] = []
    points = memory_points([(16, 1024)] if quick else SHAPES, device=device)
    for depth, width in dict.fromkeys((p["depth"], p["width"]) for p in points):
        here = [p for p in points if (p["depth"], p["width"]) == (depth, width)]
        case = f"{depth} x {width}/b512"
        rows += _rows("memory", case, {p["method"]: p["peak_bytes"] / 1e6 for p in here}, "MB")
        rows += _rows("memory", f"{case}, time", {p["method"]: p["step_ms"] for p in here}, "ms")
    # Of the process's main memory, whose peak Linux alone tells.
    if not quick and device == "cpu" and sys.platform == "linux":
        deep = NetworkCase((1024,) * 17, 512)
        resident = {name: resident_bytes_of(name, deep) / 1e6 for name in MEMORY_VARIANTS}
        rows += _rows("memory", "16 x 1024/b512, resident", resident, "MB")
    return rows


def _blocks(quick: bool, device: str) -> list[Row]:
    """Ratios are over backprop's figure: below 1, blocks take less."""
    sizes = [(name, 8 if quick else width, batch) for name, width, batch in NETWORK_SIZES]
    rows: list[Row] = []
    points = block_points(sizes, least=3 if quick else 9, device=device)
    for name, width, batch in sizes:
        here = [point for point in points if point["network"] == name]
        case = f"{name} of width {width}, 3 x 32 x 32/b{batch}"
        peaks = {p["method"]: p["peak_bytes"] / 1e6 for p in here}
        rows += _rows("blocks", f"{case}, peak", peaks, "MB", ours="backprop")
        times = {p["method"]: p["step_ms"] for p in here}
        rows += _rows("blocks", f"{case}, time", times, "ms", ours="backprop")
    return rows


def _small(quick: bool, device: str) -> list[Row]:
    rows = []
    epochs = 5 if quick else 50
    for data in SMALL_DATA:
        fits = fit_steps(data, epochs)
        case = f"{data}, {epochs} epochs"
        rows += _milliseconds("small", case, fits, 0.5 if quick else 10, device)
    return rows


def _busy(quick: bool, device: str) -> list[Row]:
    rows, turn = [], 1 if quick else _TURN
    for case in BUSY_CASES:
        for count in (0, 2):
            steps = {name: VARIANTS[name](case) for name in BUSY_VARIANTS}
            steps["spela_1_thread"] = on_one_thread(VARIANTS["spela"](case))
            with busy_processes(count):
                where = f"{case.name}, beside {count} busy processes"
                rows += _milliseconds("busy", where, steps, 1 if quick else 20, device, turn=turn)
    return rows


def _vectors(quick: bool, device: str) -> list[Row]:
    rows = []
    for count, dim in ((10, 1024), (100, 1024), (1000, 1024)):
        if quick and count == 1000:
            continue
        generator = torch.Generator().manual_seed(0)

        def make(
            count: int = count, dim: int = dim, generator: torch.Generator = generator
        ) -> object:
            return symmetric_vectors(count, dim, generator=generator)

        rows += _milliseconds("vectors", f"{count} of {dim}", {"spela": make}, 0.5, device)
    return rows


def _scaling(quick: bool, device: str) -> list[Row]:
    rows = []
    for axis in AXES:
        if axis == "threads" and device != "cpu":
            continue
        points = measure_axis(axis, 0.3 if quick else 2.0, device)
        for size, ours, floor in points:
            times = {"spela": 1e3 * ours, "floor": 1e3 * floor}
            rows += _rows("scaling", f"{axis} {size}", times, "ms")
        sizes = [size for size, _, _ in points]
        for name, column in (("spela", 1), ("floor", 2)):
            exponent = fitted_exponent(sizes, [point[column] for point in points])
            rows.append(Row("scaling", axis, name, exponent, "exponent", None))
    return rows


GROUPS: dict[str, Callable[[bool, str], list[Row]]] = {
    "network_step": _network,
    "layer_step": _layer,
    "epoch": _epoch,
    "memory": _memory,
    "blocks": _blocks,
    "small": _small,
    "busy": _busy,
    "vectors": _vectors,
    "scaling": _scaling,
}
"""What `spela bench` measures, by name; each takes whether to be quick, and the device."""


# Class vectors are found on the CPU, wherever their layer is; the others are about the CPU.
_ON_THE_CPU_ALONE = ("small", "busy", "vectors")


def groups_of(device: str) -> list[str]:
    """The groups that measure something on a device.

    Args:
        device: cpu or cuda, with an index or without.

    Example:
        >>> sorted(set(groups_of("cpu")) - set(groups_of("cuda")))
        ['busy', 'small', 'vectors']
    """
    return [name for name in GROUPS if device == "cpu" or name not in _ON_THE_CPU_ALONE]


def run_groups(names: Iterable[str], quick: bool, device: str = "cpu") -> Iterable[list[Row]]:
    """Run groups one after the other; what is wrong with a name is said at once.

    Args:
        names: Keys of `GROUPS`.
        quick: Fewer cases and rounds: minutes become seconds, and medians less sure.
        device: Where the steps run: cpu, or the current GPU.

    Returns:
        The rows of each group, measured when they are asked for.

    Raises:
        ValueError: If a name is unknown or not for this device, or parity fails.
    """
    chosen = list(names)
    for name in chosen:
        if name not in GROUPS:
            raise ValueError(f"unknown group {name!r}: use {', '.join(GROUPS)}")
        if name not in groups_of(device):
            raise ValueError(f"group {name} is computed on the CPU: use --device cpu")
    return (GROUPS[name](quick, device) for name in chosen)
