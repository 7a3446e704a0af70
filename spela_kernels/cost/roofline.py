"""From bytes and flops to a predicted time: a roofline model with one overhead a launch. Pure Python.

A model, not a measurement: peak rates are the makers' and no kernel reaches them; the overhead of a launch,
the wait for memory and the shared cache's speed are assumptions. It orders alternatives and says what bounds
them; it does not replace a clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from spela_kernels.cost.traffic import LaunchCost
from spela_kernels.gpu.architectures import Architecture, find_architecture

__all__ = [
    "CACHE_SPEED",
    "GPUS",
    "LAUNCH_US",
    "REPLAY_US",
    "WAIT_US",
    "Gpu",
    "find_gpu",
    "kernel_us",
    "launch_us",
]

# Assumed, the same for every GPU and every rival: from one kernel's end to the next one's start where
# the CPU issues each launch itself; in a slow Python process it is nearer to 10.
LAUNCH_US = 4.0
REPLAY_US = 1.0  # likewise, between the kernels of a CUDA graph, which is itself launched once
# Assumed, the same for every GPU: a load takes 200 cycles from the shared cache and 400 from memory where
# nothing queues before it (0.14 to 0.28 us), and the shared cache gives 2.7 to 4.6 times memory's bytes
# (V100 to H100: Ultrasonics Sonochemistry 99, 2023, 106546, Table 3).
WAIT_US = 0.25
CACHE_SPEED = 3.0


@dataclass(frozen=True)
class Gpu:
    """A GPU's published figures; dense products, no sparsity.

    Attributes:
        name: As people call it.
        architecture: Row of `ARCHITECTURES` that its tiles come from.
        bandwidth: Device memory, GB/s.
        cache_mib: Last cache that all multiprocessors share, MiB.
        fp32, tf32, half: Peak TFLOP/s of fp32 products outside tf32, of tf32 and of fp16 ones; tf32 is
            0 where it does not exist.
        source: Where the figures are published.
    """

    name: str
    architecture: str
    bandwidth: float
    cache_mib: int
    fp32: float
    tf32: float
    half: float
    source: str

    @property
    def arch(self) -> Architecture:
        """The tile rules' view of it."""
        return find_architecture(self.architecture)

    @property
    def cache_bytes(self) -> int:
        """Size of the shared cache."""
        return self.cache_mib * 2**20

    def peak_tflops(self, product: str) -> float:
        """Peak of a kind of product: fp32, tf32x3 (three tf32 products for one) or half."""
        return {"fp32": self.fp32, "tf32x3": self.tf32 / 3, "half": self.half}[product]


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            "T4", "sm_75", 320, 4, 8.1, 0, 65,
            "NVIDIA T4 datasheet; L2 of TU104: NVIDIA Turing architecture whitepaper",
        ),
        Gpu(
            "A100", "sm_80", 2039, 40, 19.5, 156, 312,
            "NVIDIA A100 datasheet, 80 GB SXM; L2: NVIDIA A100 architecture whitepaper",
        ),
        Gpu(
            "H100", "sm_90", 3350, 50, 66.9, 494.7, 989.4,
            "NVIDIA H100 datasheet, 80 GB SXM; L2: NVIDIA H100 architecture whitepaper",
        ),
        Gpu(
            "H200", "sm_90", 4800, 50, 66.9, 494.7, 989.4,
            "NVIDIA H200 datasheet, 141 GB SXM; L2 as of the H100, whose chip it is",
        ),
        Gpu(
            "B200", "sm_100", 8000, 126, 80, 1100, 2250,
            "NVIDIA Blackwell architecture technical brief, HGX B200; L2: Chips and Cheese, 'NVIDIA's B200'",
        ),
        # Its L2s of 4 MiB belong to one die each; the Infinity Cache is what all of them share.
        Gpu(
            "MI300X", "gfx942", 5300, 256, 163.4, 653.7, 1307.4,
            "AMD Instinct MI300X data sheet; Infinity Cache: AMD CDNA 3 whitepaper",
        ),
    )
}  # fmt: skip


def find_gpu(name: str) -> Gpu:
    """Look a GPU up by name.

    Args:
        name: One of the keys of `GPUS`, in any case.

    Raises:
        ValueError: If it is not in the table.

    Example:
        >>> find_gpu("a100").cache_mib
        40
    """
    for gpu in GPUS.values():
        if gpu.name.lower() == name.lower():
            return gpu
    raise ValueError(f"no published figures for GPU {name!r}: use one of {', '.join(GPUS)}")


def launch_us(
    gpu: Gpu,
    device_bytes: int,
    flops: int,
    product: str = "fp32",
    overhead_us: float = LAUNCH_US,
) -> float:
    """Predicted time of one launch that fills the GPU: the slower of memory and arithmetic, and the overhead.

    Args:
        gpu: Its figures.
        device_bytes: Read from and written to device memory.
        flops: Of its products.
        product: fp32, tf32x3 or half.
        overhead_us: Added to every launch.

    Returns:
        Microseconds.

    Example:
        >>> launch_us(GPUS["T4"], device_bytes=320_000_000, flops=0, overhead_us=0.0)
        1000.0
    """
    memory = device_bytes / gpu.bandwidth / 1e3
    arithmetic = flops / gpu.peak_tflops(product) / 1e6 if flops else 0.0
    return max(memory, arithmetic) + overhead_us


def kernel_us(gpu: Gpu, launch: LaunchCost, overhead_us: float = LAUNCH_US) -> float:
    """Predicted time of one of our launches, whose programs need not fill the GPU.

    The slowest of device memory, and of the shared cache and arithmetic of the multiprocessor with the most
    programs; one program's waits for memory, which the others' hide from its second wave on; the overhead.

    Args:
        gpu: Its figures.
        launch: From an op's `step_cost`.
        overhead_us: Added to every launch.

    Returns:
        Microseconds.

    Example:
        >>> from spela_kernels.linear.configs import Problem
        >>> from spela_kernels.linear.cost import Step, step_cost
        >>> a100 = GPUS["A100"]
        >>> update = step_cost(Step(Problem(50, 784, 1024, 10, 4, 4)), a100.arch).launches[-1]
        >>> round(kernel_us(a100, update), 1)
        8.6
    """
    units = gpu.arch.multiprocessors
    # Of the busiest multiprocessor, over an even share of all work.
    uneven = -(-launch.programs // units) * units / launch.programs
    cache = launch.requested / (CACHE_SPEED * gpu.bandwidth) / 1e3
    arithmetic = launch_us(gpu, 0, launch.flops, launch.product, overhead_us=0)
    memory = launch_us(gpu, launch.device_bytes(gpu.cache_bytes), 0, overhead_us=0)
    busy = max(memory, cache * uneven, arithmetic * uneven)
    return busy + launch.waits * WAIT_US + overhead_us
