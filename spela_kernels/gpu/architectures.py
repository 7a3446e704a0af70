"""The GPUs that tiles are chosen for. Pure Python: neither torch nor triton."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

__all__ = ["ARCHITECTURES", "Architecture", "find_architecture"]


@dataclass(frozen=True)
class Architecture:
    """What a tile must fit into, and how products run there.

    Attributes:
        name: `sm_80`-like or `gfx942`-like.
        shared_bytes: Most shared memory one program may use.
        multiprocessors: Of the part most people have; `find_architecture` takes the real count.
        fp32_dot: How fp32 products run. "tf32x3" is three tf32 products on tensor cores: closer to
            float64 than one FMA after the other, and free of the 3 to 4 bank conflicts a load that
            Triton's FMA product has where both operands are contiguous along the reduction. "tf32"
            is never used: unrounded operands are truncated, a bias of 8e-4 in every update.
            "ieee" is AMD's native matrix product, and FMA on Turing.
        matrix_units: Whether Triton reaches matrix units: not on Turing.
        async_copies: Whether loads can be in flight past the registers, so that stages pay.
        has_bf16: Whether bf16 products exist.
        max_registers: Given to the compiler for each thread. Left alone, ptxas spills a value or two to
            reach the next occupancy step, which kernels that wait for memory in few programs gain
            nothing from; None where the option does not exist.
    """

    name: str
    shared_bytes: int
    multiprocessors: int
    fp32_dot: str = "tf32x3"
    matrix_units: bool = True
    async_copies: bool = True
    has_bf16: bool = True
    max_registers: int | None = 255


ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        Architecture("sm_75", 65_536, 40, "ieee", False, False, False),
        Architecture("sm_80", 166_912, 108),
        Architecture("sm_86", 101_376, 84),
        Architecture("sm_89", 101_376, 128),
        Architecture("sm_90", 232_448, 132),
        Architecture("sm_100", 232_448, 148),
        Architecture("sm_120", 101_376, 170),
        Architecture("gfx90a", 65_536, 110, "ieee", async_copies=False, max_registers=None),
        Architecture("gfx942", 65_536, 304, "ieee", async_copies=False, max_registers=None),
    )
}


@lru_cache(maxsize=64)
def find_architecture(name: str, multiprocessors: int | None = None) -> Architecture:
    """The table's row for a GPU; an unknown one gets the nearest older row of its maker.

    Args:
        name: `sm_<capability>` or `gfx...`.
        multiprocessors: Number on this device; None for the table's.

    Returns:
        The row, with the device's own count.

    Raises:
        ValueError: If the GPU is older than everything in the table.

    Example:
        >>> find_architecture("sm_87").shared_bytes
        101376
    """
    row = ARCHITECTURES.get(name)
    if row is None and name.startswith("gfx"):
        row = ARCHITECTURES["gfx942" if name.startswith(("gfx94", "gfx95")) else "gfx90a"]
    elif row is None:
        digits = name.removeprefix("sm_")
        older = [
            known
            for known in ARCHITECTURES.values()
            if known.name.startswith("sm_")
            and digits.isdigit()
            and int(known.name[3:]) <= int(digits)
        ]
        if not older:
            raise ValueError(f"no tile rules for GPU {name!r}: use SPELA_BACKEND=reference")
        row = max(older, key=lambda known: int(known.name[3:]))
    values = {**row.__dict__, "multiprocessors": multiprocessors or row.multiprocessors}
    return Architecture(**values)
