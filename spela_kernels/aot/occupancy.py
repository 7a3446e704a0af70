"""How many warps of a kernel a multiprocessor holds at once. Pure Python."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MULTIPROCESSORS", "Multiprocessor"]


@dataclass(frozen=True)
class Multiprocessor:
    """A multiprocessor's (AMD: compute unit's) limits.

    Attributes:
        warps: Most at once.
        programs: Most at once.
        shared_bytes: For all programs.
        reserved_bytes: Shared memory that each program costs beside its own.
        registers: Registers a lane has in one of the four partitions.
        step: Registers are handed out to a warp in multiples of this many a thread.
    """

    warps: int
    programs: int
    shared_bytes: int
    reserved_bytes: int = 1024
    registers: int = 512
    step: int = 8

    def warps_at_once(self, num_warps: int, registers: int, shared_bytes: int) -> int:
        """Warps that are resident together.

        Args:
            num_warps: Of one program.
            registers: Of one thread.
            shared_bytes: Of one program, without the reserved bytes.

        Returns:
            A multiple of `num_warps`; 0 where not even one program fits.

        Example:
            >>> MULTIPROCESSORS["sm_80"].warps_at_once(4, registers=168, shared_bytes=24_576)
            12
        """
        allocated = -(-max(registers, 1) // self.step) * self.step
        by_registers = 4 * (self.registers // allocated)
        programs = min(self.programs, self.warps // num_warps, by_registers // num_warps)
        if shared_bytes > 0:
            programs = min(programs, self.shared_bytes // (shared_bytes + self.reserved_bytes))
        return programs * num_warps


_KIB = 1024
# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; AMD CDNA2 and CDNA3
# instruction set guides (512 vector registers a lane, 8 waves a SIMD, 64 KiB LDS).
MULTIPROCESSORS: dict[str, Multiprocessor] = {
    "sm_75": Multiprocessor(32, 16, 64 * _KIB, reserved_bytes=0),
    "sm_80": Multiprocessor(64, 32, 164 * _KIB),
    "sm_86": Multiprocessor(48, 16, 100 * _KIB),
    "sm_89": Multiprocessor(48, 24, 100 * _KIB),
    "sm_90": Multiprocessor(64, 32, 228 * _KIB),
    "sm_100": Multiprocessor(64, 32, 228 * _KIB),
    "sm_120": Multiprocessor(48, 24, 100 * _KIB),
    "gfx90a": Multiprocessor(32, 32, 64 * _KIB, reserved_bytes=0),
    "gfx942": Multiprocessor(32, 32, 64 * _KIB, reserved_bytes=0),
}
