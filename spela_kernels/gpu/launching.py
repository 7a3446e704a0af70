"""How every op launches its Triton kernels: GPU, config, alignment; or records the launches instead.

A recording takes the launches' place: it needs no GPU and runs nothing, so the compiler report
(`spela_kernels.aot`) and the cost model see exactly the launches that a GPU would get.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from spela_kernels.gpu.architectures import Architecture, find_architecture
from spela_kernels.gpu.interpreting import readable_scalars

__all__ = [
    "Launch",
    "Recording",
    "architecture_of",
    "launch",
    "record_launches",
    "run",
    "strides",
    "vector_width",
]

_INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"  # read at import, as Triton itself does
_VECTOR_BYTES = 16  # the widest load of one thread


class Launch(NamedTuple):
    """One launch: `kernel[(programs,)](*arguments, **options)`."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    options: dict[str, int]


@dataclass
class Recording:
    """Launches that were asked for while `record_launches` was active."""

    architecture: Architecture
    fallbacks: int
    launches: list[Launch] = field(default_factory=list)


_recording: Recording | None = None


@contextmanager
def record_launches(architecture: Architecture, fallbacks: int = 0) -> Iterator[Recording]:
    """Collect launches instead of making them; outputs stay as allocated. Tensors may be on `meta`.

    Args:
        architecture: The GPU to choose tiles for.
        fallbacks: How many choices of tile to pass over, as if they had run out of resources.

    Yields:
        The recording, filled as launches are asked for.
    """
    global _recording
    outer, _recording = _recording, Recording(architecture, fallbacks)
    try:
        yield _recording
    finally:
        _recording = outer


@functools.lru_cache(maxsize=16)
def _device_architecture(index: int) -> Architecture:
    properties = torch.cuda.get_device_properties(index)
    name = f"sm_{properties.major}{properties.minor}"
    if torch.version.hip:
        name = properties.gcnArchName.split(":")[0]
    return find_architecture(name, properties.multi_processor_count)


def architecture_of(device: torch.device) -> Architecture:
    """The GPU that tiles are chosen for.

    Args:
        device: Where the tensors are.

    Returns:
        The recording's, a CUDA or ROCm device's own, or for the CPU's interpreter one multiprocessor,
        where few large programs run soonest.
    """
    if _recording is not None:
        return _recording.architecture
    if device.type == "cpu":
        return find_architecture("sm_80", multiprocessors=1)
    return _device_architecture(
        torch.cuda.current_device() if device.index is None else device.index
    )


def run(
    arch: Architecture,
    kernel: Any,
    programs: int,
    arguments: tuple[Any, ...],
    num_warps: int,
    num_stages: int = 1,
) -> None:
    """Launch a kernel on a one-dimensional grid, since grid y and z stop at 65,535."""
    # Fused multiply-adds are asked for: from Triton 3.10 on they are not the default.
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    if arch.max_registers is not None:
        options["maxnreg"] = arch.max_registers
    if _recording is not None:
        _recording.launches.append(Launch(kernel, programs, arguments, options))
        return
    with readable_scalars() if _INTERPRETS else nullcontext():
        kernel[(programs,)](*arguments, **options)


class _Config(Protocol):
    @property
    def num_warps(self) -> int: ...
    @property
    def num_stages(self) -> int: ...
    def programs(self, problem: Any) -> int: ...


_AnyConfig = TypeVar("_AnyConfig", bound=_Config)


def launch(
    arch: Architecture,
    kernel: Any,
    problem: Any,
    configs: tuple[_AnyConfig, ...],
    arguments: Callable[..., tuple[Any, ...]],
    scratch: Callable[[_AnyConfig], tuple[Tensor | None, ...]] = lambda config: (),
) -> tuple[Any, ...]:
    """Launch a kernel with the first config that the device has the resources for.

    Args:
        arch: The GPU.
        kernel: The @triton.jit function.
        problem: What the configs were chosen for.
        configs: Best first.
        arguments: The kernel's, of a config and what `scratch` gave for it.
        scratch: Tensors whose size depends on the config.

    Returns:
        What `scratch` gave for the config that ran.

    Raises:
        OutOfResources: If none fits; nothing was launched.
    """
    skipped = 0 if _recording is None else min(_recording.fallbacks, len(configs) - 1)
    for config in configs[skipped:]:
        tensors = scratch(config)
        try:
            run(
                arch,
                kernel,
                config.programs(problem),
                arguments(config, *tensors),
                config.num_warps,
                config.num_stages,
            )
        except OutOfResources:
            if config is configs[-1]:
                raise
        else:
            return tensors
    raise AssertionError("a rule gives at least one config")


def vector_width(*tensors: Tensor | None) -> int:
    """Elements that loads along the last axis of all these tensors may take at once: a power of two."""
    given = [tensor for tensor in tensors if tensor is not None and tensor.numel() > 0]
    if any(tensor.stride(-1) != 1 for tensor in given):
        return 1
    widest = _VECTOR_BYTES // min(tensor.element_size() for tensor in given)
    rows = (stride for tensor in given for stride in tensor.stride()[:-1])
    return math.gcd(widest, *(tensor.shape[-1] for tensor in given), *rows)


def strides(tensor: Tensor | None, dims: int) -> tuple[int, ...]:
    """A tensor's strides, or zeros where there is no (or an empty) tensor."""
    return (0,) * dims if tensor is None or tensor.numel() == 0 else tensor.stride()
