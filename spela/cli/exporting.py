"""`spela export`: a run as a file for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spela.choices import EXPORTS, FORMATS, OLDEST_OPSET, OPSET
from spela.cli.options import RunDir, one_of, path_option, pick_device, refuse_unread
from spela.cli.trained import check_folder, refuse_own_file

__all__ = ["export"]

_ENDINGS = ", ".join(f".{name}" for name in FORMATS)


def export(
    run_dir: RunDir,
    out: Annotated[
        Path,
        path_option(
            help=f"File to write, in the format that its name ends with: {_ENDINGS} (for onnxruntime, "
            "PyTorch without SPELA, ExecuTorch). One that is there is replaced."
        ),
    ],
    what: Annotated[str, one_of(EXPORTS, help="What the file computes")] = "inference",
    batch_size: Annotated[
        int | None,
        typer.Option(help="Fixed batch size of the file (default: any; .pte needs one)."),
    ] = None,
    untrained: Annotated[
        bool,
        typer.Option("--untrained", help="Write the weights that the run started from instead."),
    ] = False,
    opset: Annotated[
        int | None,
        typer.Option(
            help=f"Operator set of an .onnx file, {OLDEST_OPSET} to {OPSET} (default: {OPSET}); older "
            "runtimes need a lower one."
        ),
    ] = None,
    weights_apart: Annotated[
        bool | None,
        typer.Option(
            "--weights-apart",
            help="Write the weights of an .onnx file beside it, as .safetensors, for every call to feed: "
            "onnxruntime-web needs it to train.",
        ),
    ] = None,
) -> None:
    """Write a trained network, or its training step, as a file that runs without SPELA."""
    from spela.export import export_run

    pick_device("cpu")
    check_folder(run_dir)
    refuse_own_file(run_dir, out)
    if out.suffix != ".onnx":
        refuse_unread(f"{out}, which is no .onnx file", opset=opset, weights_apart=weights_apart)
    program = export_run(
        run_dir,
        out,
        what=what,
        batch_size=batch_size,
        untrained=untrained,
        opset=OPSET if opset is None else opset,
        weights_apart=bool(weights_apart),
    )
    given = [name for name in program.inputs if name not in program.defaults]
    answers = [name for name in program.outputs if not name.startswith("new.")]
    typer.echo(f"{out}: {out.stat().st_size:,} bytes")
    typer.echo(f"inputs: {', '.join(given)}")
    if program.defaults:
        beside = f", first values in {out.with_suffix('.safetensors')}" if weights_apart else ""
        back = ", each back as new.NAME" if what == "train-step" else ""
        typer.echo(f"and {len(program.defaults)} weights and states{back}{beside}")
    typer.echo(f"outputs: {', '.join(answers)}")
