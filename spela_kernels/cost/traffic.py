"""What launches cost: bytes and flops, and which bytes reach device memory. Pure Python.

A model, not a measurement: it knows which tile reads what and how often, and nothing of partly filled
sectors or bank conflicts. `requested` bytes are exact (the interpreter counts the same ones); which of them
reach device memory is the one rule of `Traffic.device_bytes`.
"""

from __future__ import annotations

from dataclasses import dataclass

from spela_kernels.gpu.architectures import Architecture
from spela_kernels.gpu.tiles import count_tiles

__all__ = [
    "LaunchCost",
    "StepCost",
    "Traffic",
    "covered",
    "fp32_product",
    "loop_waits",
    "product",
    "read",
    "write",
]


@dataclass(frozen=True)
class Traffic:
    """One tensor in one launch.

    Attributes:
        tensor: Its name, the same in every launch of the step.
        size: Bytes touched at least once.
        requested: Bytes asked for by all programs together.
        window: Bytes of all tensors touched between two reads of the same element, programs running one
            after the other: what the cache must hold for the second read to be free.
        write: Whether it is written; else read.
    """

    tensor: str
    size: int
    requested: int
    window: int
    write: bool = False

    def device_bytes(self, cache_bytes: int) -> int:
        """Bytes from or to device memory: once if what lies between re-reads fits in half the cache.

        The other half is for the programs that run at the same time.
        """
        return self.size if 2 * self.window <= cache_bytes else self.requested


@dataclass(frozen=True)
class LaunchCost:
    """One launch.

    Attributes:
        name: Its kernel, without `_kernel`.
        programs: Of the grid.
        flops: Of the products, padding of partly filled tiles included.
        product: What multiplies: fp32, tf32x3 (three tf32 products) or half.
        traffic: A row for each tensor and direction.
        waits: How often a program waits for memory: its loads, one for those that are in flight together.
    """

    name: str
    programs: int
    flops: int
    product: str
    traffic: tuple[Traffic, ...]
    waits: int

    @property
    def requested(self) -> int:
        """Bytes that all programs together read and write, from or to whatever holds them."""
        return sum(row.requested for row in self.traffic)

    def device_bytes(self, cache_bytes: int) -> int:
        """Bytes from and to device memory, if the cache holds nothing of use at the start."""
        return sum(row.device_bytes(cache_bytes) for row in self.traffic)


@dataclass(frozen=True)
class StepCost:
    """The launches of a step, in order."""

    launches: tuple[LaunchCost, ...]

    def device_bytes(self, cache_bytes: int) -> int:
        """Bytes from and to device memory, if the cache outlives a launch.

        A tensor read before is then free where half the cache holds all that the step has touched.
        """
        total, read = 0, set()
        touched: dict[str, int] = {}
        for launch in self.launches:
            touched |= {row.tensor: row.size for row in launch.traffic}
            fits = 2 * sum(touched.values()) <= cache_bytes
            for row in launch.traffic:
                held = fits and not row.write and row.tensor in read
                total += 0 if held else row.device_bytes(cache_bytes)
            read |= {row.tensor for row in launch.traffic if not row.write}
        return total


def covered(size: int, block: int) -> int:
    """Elements of the tiles that cover an axis."""
    return count_tiles(size, block) * block


def read(tensor: str, size: int, visits: int = 1, window: int = 0) -> Traffic:
    """Each of `size` bytes read `visits` times."""
    return Traffic(tensor, size, size * visits, window)


def write(tensor: str, size: int) -> Traffic:
    """Each of `size` bytes written once."""
    return Traffic(tensor, size, size, 0, write=True)


def loop_waits(iterations: int, num_stages: int, chain: int = 1) -> int:
    """Waits of a loop whose iterations each make `chain` loads that need the one before.

    With stages, the loads of all but one of them are in flight together.
    """
    return count_tiles(iterations, max(num_stages - 1, 1)) * chain


def fp32_product(arch: Architecture) -> str:
    """What multiplies fp32 operands."""
    return "tf32x3" if arch.fp32_dot == "tf32x3" else "fp32"


def product(itemsize: int, arch: Architecture) -> str:
    """What multiplies operands of `itemsize` bytes."""
    return "half" if itemsize < 4 and arch.matrix_units else fp32_product(arch)
