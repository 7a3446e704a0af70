"""What every format is written from: a traced pure function, with a name for every input and output."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from spela.layers.block import sample_dtype

__all__ = ["Program", "batch_axis", "copied", "example_batch", "trace"]

_Network = TypeVar("_Network", bound=nn.Module)

# A traced batch of one would be taken for a constant; any other number stands for all.
EXAMPLE_BATCH = 2


@dataclass(frozen=True)
class Program:
    """A function without side effects, traced to plain ATen operations.

    Attributes:
        exported: The traced function.
        inputs: Name of every input, in the order of the flattened arguments.
        outputs: Name of every output, in the order of the flattened results.
        defaults: Values of the inputs that a caller may leave out: weights and optimizer state.
        facts: What a caller must know to use it, as plain JSON values; written into the file.
    """

    exported: ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    defaults: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def batch_axis(batch_size: int | None) -> dict[int, Any] | None:
    """The dynamic shape of a tensor whose first axis is the batch; None where the batch is fixed.

    Raises:
        ValueError: If a fixed batch size is not positive.

    Example:
        >>> batch_axis(50) is None
        True
    """
    if batch_size is None:
        return {0: Dim("batch", min=1)}
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    return None


def example_batch(net: nn.Module, sample_shape: tuple[int, ...], batch_size: int | None) -> Tensor:
    """A batch to trace with: (B, *sample_shape) on the network's device.

    Noise in the dtype of its parameters; zeros where its first layer is a block of tokens.
    """
    shape = (batch_size or EXAMPLE_BATCH, *sample_shape)
    device, dtype = next(net.parameters()).device, sample_dtype(net)
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device=device)
    noise = torch.Generator().manual_seed(0)
    return torch.rand(shape, dtype=dtype, device="cpu", generator=noise).to(device)


def copied(net: _Network) -> _Network:
    """A copy of a network to trace: its weights are those of now.

    Raises:
        ValueError: If it has a weight that is computed from others.
    """
    try:
        return copy.deepcopy(net)
    except RuntimeError as error:
        raise ValueError(
            "`net` cannot be copied, as a weight of it is computed from others: call "
            "torch.nn.utils.prune.remove or remove_weight_norm on its layers first"
        ) from error


def trace(function: nn.Module, given: tuple[Any, ...], axes: tuple[Any, ...]) -> ExportedProgram:
    """The function's ATen operations, without the stack traces torch keeps: they hold this machine's paths.

    Args:
        function: What to trace.
        given: Its arguments.
        axes: Which of their axes may have any size, as torch.export has it.

    Raises:
        ValueError: In one line, if torch cannot trace it so.
    """
    try:
        # A caller's autocast would leave its casts in the program.
        with torch.autocast(given[0].device.type, enabled=False):
            traced = torch.export.export(function, given, dynamic_shapes=axes)
            exported = traced.run_decompositions()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        hint = "" if axes[0] is None else " for any batch size; a fixed one may do"
        raise ValueError(f"the network cannot be traced{hint}: {reason}") from error
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)
    return exported
