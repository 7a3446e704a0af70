"""What a kernel takes of a multiprocessor, read from its machine code. Text in, numbers out."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

__all__ = ["Resources", "amd_resources", "nvidia_resources", "products"]

# HMMA and its like, Hopper's HGMMA, Blackwell's UTCHMMA; but HFMA2.MMA is an FMA.
_NVIDIA_MATRIX = re.compile(r"(?<![.\w])((?:UTC(?:MX)?)?[A-Z]G?MMA(?:\.\w+)*)")
_AMD_MATRIX = re.compile(r"\b(v_s?mfmac?_\w+)\b")
# Local memory is where ptxas spills; its instructions move 4 bytes a thread unless they say more.
_LOCAL = re.compile(r"\b(STL|LDL)((?:\.[A-Z0-9]+)*)")
_LOCAL_BYTES = {"8": 1, "16": 2, "64": 8, "128": 16}
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")
# ttgir's product with a result outside a matrix unit's layout is a loop of FMAs.
_PRODUCT = re.compile(r"\btt\.dot(?:_scaled)? .*-> tensor<[^,]*, (#\w+)")


@dataclass(frozen=True)
class Resources:
    """Of one thread, unless it says otherwise.

    Attributes:
        registers: Vector registers, on AMD with accumulation registers.
        spill_stores, spill_loads: Bytes of local memory that the code writes and reads; on AMD the
            number of spilled vector registers for both.
        stack: Bytes of the stack frame (AMD: scratch).
        static_shared: Bytes a program, reserved by the compiler.
        matrix: Matrix instructions in the code by name.
    """

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    static_shared: int
    matrix: dict[str, int]


def nvidia_resources(usage: str, code: str) -> Resources:
    """Read `cuobjdump -res-usage` and `nvdisasm -c`.

    Args:
        usage: The former's output for one kernel.
        code: The latter's.

    Returns:
        The resources.

    Raises:
        ValueError: If the output has another form.

    Example:
        >>> nvidia_resources("REG:24 STACK:8 SHARED:0 LOCAL:0", "STL.64 [R1], R2 ;").spill_stores
        8
    """
    found = _USAGE.search(usage)
    if found is None:
        raise ValueError(f"cuobjdump says nothing of registers: {usage.strip()[-200:]!r}")
    registers, stack, shared = map(int, found.groups())
    moved = Counter[str]()
    for name, suffixes in _LOCAL.findall(code):
        widths = [_LOCAL_BYTES[s] for s in suffixes.lstrip(".").split(".") if s in _LOCAL_BYTES]
        moved[name] += widths[0] if widths else 4
    matrix = Counter(_NVIDIA_MATRIX.findall(code))
    return Resources(registers, moved["STL"], moved["LDL"], stack, shared, dict(matrix))


def amd_resources(assembly: str) -> Resources:
    """Read the metadata and instructions of an AMD GPU's assembly.

    Args:
        assembly: As the compiler leaves it.

    Returns:
        The resources.

    Raises:
        ValueError: If the metadata is not there.
    """

    def value(field: str) -> int:
        found = re.search(rf"\.{field}:\s+(\d+)", assembly)
        if found is None:
            raise ValueError(f"the assembly has no .{field}")
        return int(found.group(1))

    # Scalar registers spill to lanes of a vector register, which costs no memory; where even those run
    # out, the scratch bytes of `stack` tell.
    spilled = value("vgpr_spill_count")
    return Resources(
        registers=value("vgpr_count"),
        spill_stores=spilled,
        spill_loads=spilled,
        stack=value("private_segment_fixed_size"),
        static_shared=value("group_segment_fixed_size"),
        matrix=dict(Counter(_AMD_MATRIX.findall(assembly))),
    )


def products(ttir: str, ttgir: str) -> tuple[int, int]:
    """How many matrix products a kernel has, and how many of them run as FMAs.

    Args:
        ttir: As written, before layouts.
        ttgir: With layouts; a three-part product counts three times there.

    Returns:
        Products in `ttir`, FMA products in `ttgir`.

    Example:
        >>> line = "%z = tt.dot %a, %b, %c : t * t -> tensor<16x16xf32"
        >>> products(line + ">", line + ", #blocked>")
        (1, 1)
    """
    on_fma = sum(layout.startswith("#blocked") for layout in _PRODUCT.findall(ttgir))
    return len(re.findall(r"\btt\.dot(?:_scaled)? ", ttir)), on_fma
