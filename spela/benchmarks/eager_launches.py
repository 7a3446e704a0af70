"""What eager PyTorch launches in a step: its operators watched on tensors without data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spela_kernels.cost.published_step import published_projection_step, published_step
from spela_kernels.linear.cost import Step
from spela_kernels.projection.cost import Step as ProjectionStep

__all__ = ["EagerLaunch", "eager_launches", "eager_projection_launches"]

_UNREAD = {"fill_", "zero_", "copy_"}  # what they write into is not read
_NOTHING = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
}


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
    if name not in ("mm", "addmm", "bmm"):
        return 0
    a, b = tensors[-2:]
    return 2 * a.numel() * b.shape[-1]


def _watched(step: Callable[[], object]) -> list[EagerLaunch]:
    """What a step launches once it is warmed up."""
    step()
    with _Watch() as watch:
        step()
    return watch.launches


def eager_launches(step: Step, dtype: torch.dtype) -> list[EagerLaunch]:
    """What eager PyTorch launches in one published step of a layer, warmed up.

    Args:
        step: Shapes and optimizer.
        dtype: Of all tensors.

    Returns:
        One entry for each operator that launches a kernel (some launch more than one).

    Example:
        >>> from spela_kernels.linear.cost import Problem
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
        x, weight, bias, vectors, target, foreach=True,
        optimizer="adam" if step.moments == 2 else "sgd",
        objective="softmax" if p.all_classes else "log",
    )  # fmt: skip
    return _watched(run)


def eager_projection_launches(step: ProjectionStep, dtype: torch.dtype) -> list[EagerLaunch]:
    """Likewise of a grouped projection's SGD step: one batched product for all kernels, and its gradients.

    Args:
        step: Shapes; its objective is of the label's cosine.
        dtype: Of all tensors.

    Example:
        >>> from spela_kernels.projection.configs import Problem
        >>> step = ProjectionStep(Problem(64, 128, 144, 100, 9, 10, 4))
        >>> [one.name for one in eager_projection_launches(step, torch.float32)].count("bmm")
        3
    """
    p = step.problem
    z, projection, vectors = (
        torch.empty(shape, dtype=dtype, device="meta")
        for shape in (
            (p.batch, p.kernels, p.size),
            (p.kernels, p.size, p.dim),
            (p.kernels, p.groups, p.dim),
        )
    )
    groups, target = (
        torch.empty(shape, dtype=torch.int64, device="meta")
        for shape in ((p.kernels, p.classes), (p.batch,))
    )
    return _watched(published_projection_step(z, projection, vectors, groups, target))
