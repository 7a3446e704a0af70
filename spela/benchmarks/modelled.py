"""The cost model's table: fused steps beside the published ones, on GPUs that need not be here.

Every launch finds nothing of use in the cache and takes the time of `spela_kernels.cost.roofline`. Ours is
counted from the tile rules, eager PyTorch's by watching its step run on tensors without data: its operators
are taken to fill the GPU and to wait for memory once. The result is a model, not a measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch

from spela.benchmarks.eager_launches import (
    EagerLaunch,
    eager_launches,
    eager_projection_launches,
)
from spela.benchmarks.network import NETWORK_CASES
from spela_kernels.cost.roofline import (
    CACHE_SPEED,
    LAUNCH_US,
    REPLAY_US,
    WAIT_US,
    Gpu,
    kernel_us,
    launch_us,
)
from spela_kernels.cost.traffic import LaunchCost
from spela_kernels.gpu.architectures import Architecture
from spela_kernels.linear import cost as linear
from spela_kernels.linear.configs import Problem
from spela_kernels.projection import cost as projection
from spela_kernels.projection.configs import Problem as ProjectionProblem

__all__ = [
    "DTYPES",
    "PAPER_LAYERS",
    "PAPER_PROJECTIONS",
    "Modelled",
    "format_table",
    "model_steps",
    "to_json",
]

PAPER_LAYERS = ((784, 1024), (1024, 10), (784, 1000), (1000, 34), (1024, 1024))
# D of the layers of the authors' networks for 32 x 32 and 28 x 28.
PAPER_PROJECTIONS = (900, 169, 144, 16)
_BATCH, _CLASSES = 50, 10
_MAPS_BATCH, _KERNELS, _DIM, _GROUPS = 64, 128, 100, 9  # of the authors' networks
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Modelled:
    """One step on one GPU, ours and eager PyTorch's; times in microseconds.

    Attributes:
        kind: layer, projection or network: every layer's step in turn.
        name: Its sizes and batch.
        gpu: Its name.
        launches, device_bytes, compulsory_bytes, predicted_us, graph_us: Ours; `graph_us` where one CUDA
            graph has all launches.
        eager_launches, eager_device_bytes, eager_predicted_us, eager_graph_us: Eager PyTorch's.
    """

    kind: str
    name: str
    gpu: str
    launches: int
    device_bytes: int
    compulsory_bytes: int
    predicted_us: float
    graph_us: float
    eager_launches: int
    eager_device_bytes: int
    eager_predicted_us: float
    eager_graph_us: float

    @property
    def ratio(self) -> float:
        """Predicted time of eager's step over ours."""
        return self.eager_predicted_us / self.predicted_us


@dataclass(frozen=True)
class _Subject:
    """A step to model: its launches on a GPU, what it must move, and eager PyTorch's launches."""

    kind: str
    name: str
    ours: Callable[[Architecture], tuple[LaunchCost, ...]]
    compulsory_bytes: int
    eager: list[EagerLaunch]


def _layers(kind: str, sizes: tuple[int, ...], batch: int, dtype: torch.dtype) -> _Subject:
    steps = [
        linear.Step(Problem(batch, i, o, _CLASSES, dtype.itemsize, dtype.itemsize))
        for i, o in pairwise(sizes)
    ]

    def ours(arch: Architecture) -> tuple[LaunchCost, ...]:
        return tuple(one for step in steps for one in linear.step_cost(step, arch).launches)

    return _Subject(
        kind,
        f"{'-'.join(map(str, sizes))}/b{batch}",
        ours,
        sum(step.compulsory_bytes for step in steps),
        [launch for step in steps for launch in eager_launches(step, dtype)],
    )


def _projection(size: int, dtype: torch.dtype) -> _Subject:
    problem = ProjectionProblem(
        _MAPS_BATCH, _KERNELS, size, _DIM, _GROUPS, _CLASSES, dtype.itemsize
    )
    step = projection.Step(problem)
    return _Subject(
        "projection",
        f"{_KERNELS}x{size}-{_DIM}/b{_MAPS_BATCH}",
        lambda arch: projection.step_cost(step, arch).launches,
        step.compulsory_bytes,
        eager_projection_launches(step, dtype),
    )


def _subjects(dtype: torch.dtype) -> Iterator[_Subject]:
    for sizes in PAPER_LAYERS:
        yield _layers("layer", sizes, _BATCH, dtype)
    for size in PAPER_PROJECTIONS:
        yield _projection(size, dtype)
    for case in NETWORK_CASES:
        yield _layers("network", case.sizes, case.batch, dtype)


def _steps_us(kernels: Sequence[float], overhead_us: float) -> tuple[float, float]:
    """Of launches one by one, and of all in one graph."""
    busy = sum(kernels)
    graph = min(REPLAY_US, overhead_us)
    return busy + overhead_us * len(kernels), busy + overhead_us + graph * len(kernels)


def model_steps(
    gpus: Sequence[Gpu], dtype: str = "float32", overhead_us: float = LAUNCH_US
) -> list[Modelled]:
    """Model SGD steps: the paper's layers at batch 50, its projections at 64, and whole networks.

    Args:
        gpus: Rows of `spela_kernels.cost.roofline.GPUS`.
        dtype: float32, float16 or bfloat16.
        overhead_us: Assumed for every launch outside a graph, of ours and of eager PyTorch's alike.

    Returns:
        One row a step and GPU.

    Raises:
        ValueError: If the dtype is none of these.

    Example:
        >>> from spela_kernels.cost.roofline import GPUS
        >>> [(row.kind, row.launches) for row in model_steps([GPUS["A100"]])][4:6]
        [('layer', 3), ('projection', 2)]
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: use one of {', '.join(DTYPES)}")
    rows = []
    eager_product = "fp32" if DTYPES[dtype].itemsize == 4 else "half"  # torch leaves tf32 off
    for subject in _subjects(DTYPES[dtype]):
        for gpu in gpus:
            ours = subject.ours(gpu.arch)
            times = [kernel_us(gpu, launch, overhead_us=0) for launch in ours]
            eager_times = [
                launch_us(gpu, op.device_bytes, op.flops, eager_product, overhead_us=WAIT_US)
                for op in subject.eager
            ]
            predicted, graph = _steps_us(times, overhead_us)
            eager_predicted, eager_graph = _steps_us(eager_times, overhead_us)
            rows.append(
                Modelled(
                    kind=subject.kind,
                    name=subject.name,
                    gpu=gpu.name,
                    launches=len(ours),
                    device_bytes=sum(launch.device_bytes(gpu.cache_bytes) for launch in ours),
                    compulsory_bytes=subject.compulsory_bytes,
                    predicted_us=predicted,
                    graph_us=graph,
                    eager_launches=len(subject.eager),
                    eager_device_bytes=sum(op.device_bytes for op in subject.eager),
                    eager_predicted_us=eager_predicted,
                    eager_graph_us=eager_graph,
                )
            )
    return rows


def format_table(rows: Sequence[Modelled]) -> str:
    """The rows as text, GPUs as columns: predicted microseconds, ours / eager's, and their ratio.

    Below each step the same as one CUDA graph.
    """
    gpus = list(dict.fromkeys(row.gpu for row in rows))
    by = {(row.kind, row.name, row.gpu): row for row in rows}
    heads = ["step", "launches", f"MB on {gpus[0]}", "of minimum", *(f"{gpu} us" for gpu in gpus)]
    lines = [heads]
    for kind, name in dict.fromkeys((row.kind, row.name) for row in rows):
        found = [by[kind, name, gpu] for gpu in gpus]
        first = found[0]
        megabytes = f"{first.device_bytes / 1e6:.1f} / {first.eager_device_bytes / 1e6:.1f}"
        lines += [
            [
                f"{kind} {name}",
                f"{first.launches} / {first.eager_launches}",
                megabytes,
                f"{first.device_bytes / first.compulsory_bytes:.2f}",
                *(_times(row.predicted_us, row.eager_predicted_us) for row in found),
            ],
            [
                "  in one graph", "1 / 1", "", "",
                *(_times(row.graph_us, row.eager_graph_us) for row in found),
            ],
        ]  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _times(ours: float, eager: float) -> str:
    return f"{ours:.1f} / {eager:.1f} ({eager / ours:.1f}x)"


def to_json(
    rows: Sequence[Modelled], gpus: Sequence[Gpu], dtype: str, overhead_us: float = LAUNCH_US
) -> dict[str, Any]:
    """Everything the table rests on, for a file."""
    return {
        "kind": "model, not a measurement",
        "dtype": dtype,
        "assumed_launch_us": overhead_us,
        "assumed_replay_us": min(REPLAY_US, overhead_us),
        "assumed_wait_us": WAIT_US,
        "assumed_cache_speed": CACHE_SPEED,
        "gpus": [asdict(gpu) for gpu in gpus],
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
    }
