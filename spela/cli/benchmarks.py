"""`spela bench`: times and memory measured here, or times predicted for a GPU."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from spela.benchmarks import GROUPS, describe_machine, format_rows, groups_of, run_groups
from spela.benchmarks import to_json as measured_to_json
from spela.benchmarks.modelled import DTYPES, format_table, model_steps, to_json
from spela.cli.options import Threads, path_option, pick_device, refuse_unread, set_threads
from spela.training.records import write_atomically
from spela_kernels.cost.roofline import GPUS, LAUNCH_US, find_gpu

__all__ = ["bench"]


def bench(
    groups: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(GROUPS)} (default: all).")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer cases and rounds: a minute, less sure.")
    ] = False,
    threads: Threads = None,
    device: Annotated[
        str | None, typer.Option(help="Measure on auto, cpu, cuda, cuda:1, ... (default: cpu).")
    ] = None,
    model: Annotated[
        bool,
        typer.Option("--model", help="Predict GPU times from the kernels' tiles; needs no GPU."),
    ] = False,
    gpu: Annotated[
        str | None, typer.Option(help=f"For --model: one of {', '.join(GPUS)} (default: all).")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help=f"For --model: {', '.join(DTYPES)} (default: float32).")
    ] = None,
    launch_us: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1e6,
            help=f"For --model: assumed overhead of a launch, microseconds (default: {LAUNCH_US:g}).",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, path_option("--json", help="Also write the figures here.")
    ] = None,
) -> None:
    """Time training steps, epochs and memory against named baselines; ratios are theirs over ours."""
    if json_file is not None and not json_file.parent.is_dir():
        raise ValueError(f"--json {json_file}: the folder {json_file.parent} does not exist")
    if json_file is not None and json_file.is_dir():
        raise ValueError(f"--json {json_file} is a folder: name a file")
    if model:
        if groups:
            raise ValueError(f"--model is one table: leave {' '.join(groups)} out")
        refuse_unread("a model", quick=quick or None, threads=threads, device=device)
        figures = _modelled(gpu, dtype or "float32", LAUNCH_US if launch_us is None else launch_us)
    else:
        refuse_unread("measuring, without --model", gpu=gpu, dtype=dtype, launch_us=launch_us)
        figures = _measured(groups, quick, threads, pick_device(device or "cpu"))
    if json_file is not None:
        text = json.dumps(figures, indent=2) + "\n"
        write_atomically(json_file, lambda name: Path(name).write_text(text, encoding="utf-8"))


def _measured(
    groups: list[str] | None, quick: bool, threads: int | None, device: torch.device
) -> dict[str, Any]:
    set_threads(threads)
    machine = {**describe_machine(), "device": str(device)}
    typer.echo("  ".join(f"{name} {value}" for name, value in machine.items()))
    typer.echo(
        "Medians of steps that take turns; last column: the figure over ours, of blocks over backprop's. "
        "`floor` is the products alone, by the fastest library call. Parity is checked first.\n"
    )
    rows = []
    # Clocks and memory meters are those of the current GPU.
    with nullcontext() if device.type == "cpu" else torch.cuda.device(device):
        for found in run_groups(groups or groups_of(str(device)), quick, str(device)):
            typer.echo(format_rows(found))
            rows += found
    return measured_to_json(rows, machine, quick)


def _modelled(gpu: str | None, dtype: str, launch_us: float) -> dict[str, Any]:
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
    return to_json(rows, gpus, dtype, launch_us)
