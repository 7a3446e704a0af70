"""ExecuTorch: programs as .pte files for its runtime on phones and microcontrollers."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from spela.export.program import Program
from spela.files.atomic import write_atomically

__all__ = ["write_pte"]


def _shifted(codes: Tensor, bits: int) -> Tensor:
    return torch.div(codes, 1 << bits, rounding_mode="floor")


# Operators that ExecuTorch lacks.
_INSTEAD = {torch.ops.aten.__rshift__.Scalar: _shifted}


def write_pte(program: Program, path: str | Path) -> None:
    """Write a program as one ExecuTorch file, whole or not at all.

    The method `forward` is the function; `default.NAME` gives the default of the input NAME, and
    `spela` the names of inputs and outputs and the program's facts as JSON.

    Args:
        program: Traced with a fixed batch size: ExecuTorch plans its memory ahead.
        path: The file to create or replace.

    Raises:
        ValueError: If executorch is missing, or the batch size is not fixed.
        OSError: If the file cannot be written.
    """
    if find_spec("executorch") is None:
        raise ValueError("executorch is not installed: pip install executorch")
    if program.exported.range_constraints:
        raise ValueError("a .pte file plans its memory ahead: give it a batch size")
    from executorch.exir import to_edge_transform_and_lower  # here because it is an extra

    facts = {"inputs": list(program.inputs), "outputs": list(program.outputs), **program.facts}
    constants = {f"default.{name}": value for name, value in program.defaults.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        lowered = to_edge_transform_and_lower(
            program.exported.run_decompositions(_INSTEAD),
            constant_methods={**constants, "spela": json.dumps(facts)},
        )
        content = bytes(lowered.to_executorch().buffer)
    write_atomically(Path(path), content)
