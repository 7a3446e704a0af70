"""The cost model's table: a fused layer step beside the published one, on GPUs that need not be here.

Both sides are judged alike: every launch finds nothing of use in the cache and takes the time of
`spela_kernels.cost.roofline`. Ours is counted from the tile rules, eager PyTorch's by watching its step run
on tensors without data. The result is a model, not a measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spela_kernels.cost.published_step import published_step
from spela_kernels.cost.roofline import LAUNCH_US, Gpu, launch_us
from spela_kernels.linear.configs import Problem
from spela_kernels.linear.cost import Step, step_cost

__all__ = [
    "DTYPES",
    "PAPER_LAYERS",
    "EagerLaunch",
    "Modelled",
    "eager_launches",
    "format_table",
    "model_steps",
    "to_json",
]

PAPER_LAYERS = ((784, 1024), (1024, 10), (784, 1000), (1000, 34), (1024, 1024))
_BATCH, _CLASSES = 50, 10
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_UNREAD = {"fill_", "zero_", "copy_"}  # what they write into is not read
_NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view"}


class EagerLaunch(NamedTuple):
    """One operator that launches a kernel."""

    name: str
    device_bytes: int
    flops: int


class _Watch(TorchDispatchMode):
    """Notes each operator that reads or writes memory: views and allocations launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[EagerLaunch] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        returns = [r.alias_info for r in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returns)
        if not is_view and name not in _NOTHING:
            given = _on_device((args, kwargs))
            # Without a result, a foreach operator has changed its first list.
            made = _on_device(result if returns else args[:1])
            if made:
                read = given[1:] if name in _UNREAD else given
                moved = sum(map(_bytes, read)) + sum(map(_bytes, made))
                self.launches.append(EagerLaunch(name, moved, _flops(name, given)))
        return result


def _on_device(tree: Any) -> list[Tensor]:
    """Its tensors on the modelled GPU; Adam counts its steps on the CPU."""
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor) and t.is_meta]


def _bytes(tensor: Tensor) -> int:
    """Bytes of the elements that exist: an expanded axis has one."""
    sizes = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0)
    return prod(sizes) * tensor.element_size()


def _flops(name: str, tensors: list[Tensor]) -> int:
    if name not in ("mm", "addmm"):
        return 0
    a, b = tensors[-2:]
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


def eager_launches(step: Step, dtype: torch.dtype, lr: float = 0.1) -> list[EagerLaunch]:
    """What eager PyTorch launches in one published step of a layer, warmed up.

    Args:
        step: Shapes and optimizer.
        dtype: Of all tensors.
        lr: Learning rate.

    Returns:
        One entry for each operator that launches a kernel (some launch more than one).

    Example:
        >>> step = Step(Problem(50, 784, 1024, 10, 4, 4))
        >>> [launch.name for launch in eager_launches(step, torch.float32)][:2]
        ['addmm', 'leaky_relu']
    """
    p = step.problem
    x, weight, vectors = (
        torch.empty(shape, dtype=dtype, device="meta")
        for shape in ((p.batch, p.inputs), (p.outputs, p.inputs), (p.classes, p.outputs))
    )
    bias = torch.empty(p.outputs, dtype=dtype, device="meta") if step.bias else None
    target = torch.empty(p.batch, dtype=torch.int64, device="meta")
    # foreach is what torch.optim chooses on a GPU; here it would choose for the meta device.
    run = published_step(
        x, weight, bias, vectors, target, lr=lr, foreach=True,
        optimizer="adam" if step.moments == 2 else "sgd",
        objective="softmax" if p.all_classes else "log",
    )  # fmt: skip
    run()
    with _Watch() as watch:
        run()
    return watch.launches


@dataclass(frozen=True)
class Modelled:
    """One layer on one GPU, ours and eager PyTorch's; times in microseconds."""

    layer: str
    gpu: str
    launches: int
    device_bytes: int
    compulsory_bytes: int
    predicted_us: float
    eager_launches: int
    eager_device_bytes: int
    eager_predicted_us: float

    @property
    def ratio(self) -> float:
        """Predicted time of eager's step over ours."""
        return self.eager_predicted_us / self.predicted_us


def model_steps(
    gpus: Sequence[Gpu], dtype: str = "float32", overhead_us: float = LAUNCH_US
) -> list[Modelled]:
    """Model an SGD step with the `log` objective of each of the paper's layers at batch 50.

    Args:
        gpus: Rows of `spela_kernels.cost.roofline.GPUS`.
        dtype: float32, float16 or bfloat16.
        overhead_us: Assumed for every launch, of ours and of eager PyTorch's alike.

    Returns:
        One row a layer and GPU.

    Raises:
        ValueError: If the dtype is none of these.

    Example:
        >>> from spela_kernels.cost.roofline import GPUS
        >>> [row.launches for row in model_steps([GPUS["A100"]])]
        [3, 3, 3, 3, 3]
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: use one of {', '.join(DTYPES)}")
    itemsize, rows = DTYPES[dtype].itemsize, []
    eager_product = "fp32" if itemsize == 4 else "half"  # torch leaves tf32 off
    for inputs, outputs in PAPER_LAYERS:
        step = Step(Problem(_BATCH, inputs, outputs, _CLASSES, itemsize, itemsize))
        eager = eager_launches(step, DTYPES[dtype])
        for gpu in gpus:
            ours = step_cost(step, gpu.arch).launches
            moved = [launch.device_bytes(gpu.cache_bytes) for launch in ours]
            times = (
                launch_us(gpu, bytes_, launch.flops, launch.product, overhead_us)
                for bytes_, launch in zip(moved, ours, strict=True)
            )
            eager_times = (
                launch_us(gpu, op.device_bytes, op.flops, eager_product, overhead_us)
                for op in eager
            )
            rows.append(
                Modelled(
                    layer=f"{inputs}-{outputs}",
                    gpu=gpu.name,
                    launches=len(ours),
                    device_bytes=sum(moved),
                    compulsory_bytes=step.compulsory_bytes,
                    predicted_us=sum(times),
                    eager_launches=len(eager),
                    eager_device_bytes=sum(op.device_bytes for op in eager),
                    eager_predicted_us=sum(eager_times),
                )
            )
    return rows


def format_table(rows: Sequence[Modelled]) -> str:
    """The rows as text, GPUs as columns: predicted microseconds, ours / eager's, and their ratio."""
    gpus = list(dict.fromkeys(row.gpu for row in rows))
    by = {(row.layer, row.gpu): row for row in rows}
    heads = ["layer", "launches", f"MB on {gpus[0]}", *(f"{gpu} us" for gpu in gpus)]
    lines = [heads]
    for layer in dict.fromkeys(row.layer for row in rows):
        first = by[layer, gpus[0]]
        megabytes = f"{first.device_bytes / 1e6:.1f} / {first.eager_device_bytes / 1e6:.1f}"
        cells = [
            f"{by[layer, gpu].predicted_us:.1f} / {by[layer, gpu].eager_predicted_us:.1f}"
            f" ({by[layer, gpu].ratio:.1f}x)"
            for gpu in gpus
        ]
        lines.append([layer, f"{first.launches} / {first.eager_launches}", megabytes, *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def to_json(
    rows: Sequence[Modelled], gpus: Sequence[Gpu], dtype: str, overhead_us: float = LAUNCH_US
) -> dict[str, Any]:
    """Everything the table rests on, for a file."""
    return {
        "kind": "model, not a measurement",
        "batch": _BATCH,
        "classes": _CLASSES,
        "dtype": dtype,
        "assumed_launch_us": overhead_us,
        "gpus": [asdict(gpu) for gpu in gpus],
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
    }
