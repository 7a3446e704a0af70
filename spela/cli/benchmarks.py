"""`spela bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from spela.modelled import DTYPES, format_table, model_steps, to_json
from spela_kernels.roofline import GPUS, LAUNCH_US, find_gpu

__all__ = ["bench"]


def bench(
    model: Annotated[
        bool,
        typer.Option("--model", help="Predict GPU times from the kernels' tiles; needs no GPU."),
    ] = False,
    gpu: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(GPUS)} (default: all).")
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"{', '.join(DTYPES)}.")] = "float32",
    launch_us: Annotated[
        float, typer.Option(min=0, help="Assumed overhead of every launch, microseconds.")
    ] = LAUNCH_US,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures here.")
    ] = None,
) -> None:
    """Compare a fused layer step with the published one in eager PyTorch, by the cost model."""
    if not model:
        raise ValueError(
            "the measured benchmarks run by `make bench`; --model prints the cost model"
        )
    gpus = list(GPUS.values()) if gpu is None else [find_gpu(gpu)]
    rows = model_steps(gpus, dtype, launch_us)
    typer.echo(
        "A model, not a measurement: one SPELA step (SGD, log loss) of each layer at batch 50, "
        f"{dtype}; ours / eager PyTorch's.\nTime of a launch = max(bytes / bandwidth, flops / peak) "
        f"+ {launch_us:g} us, an assumed overhead that decides most rows (--launch-us)."
    )
    typer.echo(format_table(rows))
    for row in gpus:
        typer.echo(f"{row.name}: {row.bandwidth:g} GB/s, {row.cache_mib} MiB cache. {row.source}")
    if json_file is not None:
        json_file.write_text(json.dumps(to_json(rows, gpus, dtype, launch_us), indent=2) + "\n")
