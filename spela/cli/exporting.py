"""`spela export`: a run as a file for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spela.cli.options import RunDir, path_option, pick_device, refuse_unread
from spela.export import FORMATS, KINDS, export_run
from spela.export.onnx_file import OPSET

__all__ = ["export"]


def export(
    run_dir: RunDir,
    out: Annotated[Path, path_option(help="File to create or replace.")],
    what: Annotated[str, typer.Option(help=f"{' or '.join(KINDS)}.")] = "inference",
    format: Annotated[str, typer.Option(help=f"{', '.join(FORMATS)}.")] = "onnx",
    batch_size: Annotated[
        int | None, typer.Option(help="A fixed batch size (default: any; pte needs one).")
    ] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="With the weights that the run started from.")
    ] = False,
    opset: Annotated[
        int | None,
        typer.Option(help=f"Of ONNX (default: {OPSET}); older runtimes need a lower one."),
    ] = None,
) -> None:
    """Write the network or its training step for onnxruntime (onnx), PyTorch (pt2) or ExecuTorch (pte)."""
    pick_device("cpu")
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is not a folder: give the --out folder of a training run")
    if format != "onnx":
        refuse_unread(f"format {format}", opset=opset)
    program = export_run(
        run_dir,
        out,
        what=what,
        format=format,
        batch_size=batch_size,
        untrained=untrained,
        opset=OPSET if opset is None else opset,
    )
    given = [name for name in program.inputs if name not in program.defaults]
    answers = [name for name in program.outputs if not name.startswith("new.")]
    typer.echo(f"{out}: {out.stat().st_size:,} bytes")
    typer.echo(f"inputs: {', '.join(given)}")
    if program.defaults:
        typer.echo(f"and {len(program.defaults)} weights and states, each back as new.NAME")
    typer.echo(f"outputs: {', '.join(answers)}")
