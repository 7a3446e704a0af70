"""The compiler report: its lines, and what is wrong with a row."""

from __future__ import annotations

from spela_kernels.aot.compile import Row
from spela_kernels.gpu.architectures import ARCHITECTURES

__all__ = ["HEADER", "failures", "line"]

HEADER = (
    f"{'target':7} {'kernel':16} {'regs':>4} {'spill st/ld':>11} {'stack':>5} "
    f"{'shared/limit':>14} {'warps':>5} {'matrix':>6}  case"
)


def line(row: Row) -> str:
    """A row as text, under `HEADER`."""
    if row.resources is None:
        return f"{row.target:7} {row.kernel:16} {row.error}  {row.label}"
    found = row.resources
    spill = f"{found.spill_stores}/{found.spill_loads}"
    shared = f"{row.shared}/{ARCHITECTURES[row.target].shared_bytes}"
    return (
        f"{row.target:7} {row.kernel:16} {found.registers:4} {spill:>11} {found.stack:5} "
        f"{shared:>14} {row.warps:5} {sum(found.matrix.values()):6}  {row.label}"
    )


def failures(row: Row) -> list[str]:
    """What must not be: spills, a passed limit, a product that misses the matrix units there are.

    Args:
        row: From `compile_job`.

    Returns:
        A sentence for each, empty for a good row.
    """
    arch, found = ARCHITECTURES[row.target], row.resources
    if found is None:
        return [f"does not compile: {row.error}"]
    wrong = []
    if found.spill_stores or found.spill_loads:
        unit = "bytes" if row.target.startswith("sm_") else "registers"
        wrong.append(f"spills {found.spill_stores} {unit} and reloads {found.spill_loads}")
    elif found.stack:
        wrong.append(f"keeps {found.stack} bytes a thread on the stack")
    if row.shared > arch.shared_bytes:
        wrong.append(f"needs {row.shared} bytes of shared memory, limit {arch.shared_bytes}")
    elif row.warps == 0:
        wrong.append(f"{row.num_warps} warps of {found.registers} registers do not fit")
    if arch.matrix_units and row.products and not found.matrix:
        wrong.append("has a matrix product but no matrix instruction")
    elif arch.matrix_units and row.fma_products:
        wrong.append(f"{row.fma_products} of its matrix products run as FMAs")
    return wrong
