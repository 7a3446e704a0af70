"""torch.export's own format: a zip that PyTorch, and tools that build on it, load.

This library writes .pt2 files and never reads one: `torch.export.load` may run code that a file brings,
so load only files whose writer you trust.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch

from spela.export.program import Program
from spela.files.atomic import write_atomically

__all__ = ["write_pt2"]


def write_pt2(program: Program, path: str | Path) -> None:
    """Write a program with torch.export.save, whole or not at all.

    The names of inputs and outputs, and the program's facts, are in its extra file `spela.json`; the
    defaults of a training step's weights and state are the example inputs stored with it.

    Args:
        program: From `inference_program` or `train_step_program`.
        path: The file to create or replace.

    Raises:
        OSError: If the file cannot be written.
    """
    facts = {
        "inputs": list(program.inputs),
        "outputs": list(program.outputs),
        **program.facts,
    }
    buffer = io.BytesIO()
    torch.export.save(program.exported, buffer, extra_files={"spela.json": json.dumps(facts)})
    write_atomically(Path(path), buffer.getvalue())
