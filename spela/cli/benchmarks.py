"""`spela bench`: times and memory measured here, or times predicted for a GPU."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spela import choices
from spela.cli.options import (
    COMPUTING,
    Threads,
    number_in,
    one_of,
    path_option,
    pick_device,
    refuse_unread,
    set_threads,
)

if TYPE_CHECKING:
    import torch

__all__ = ["bench"]

_MODEL = "The model (--model)"


def bench(
    groups: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"What to measure: {', '.join(choices.BENCHMARKS)} (default: all).",
            metavar="GROUP",
            autocompletion=lambda incomplete: [
                n for n in choices.BENCHMARKS if n.startswith(incomplete)
            ],
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure fewer cases and rounds: a minute, less sure.")
    ] = False,
    json_file: Annotated[
        Path | None, path_option("--json", help="Also write the figures to this file.")
    ] = None,
    threads: Threads = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Measure on auto, cpu, cuda, cuda:1, ... (default: cpu).",
            rich_help_panel=COMPUTING,
        ),
    ] = None,
    model: Annotated[
        bool,
        typer.Option(
            "--model",
            help="Predict times on GPUs from the kernels' tiles instead; needs no GPU.",
            rich_help_panel=_MODEL,
        ),
    ] = False,
    gpu: Annotated[
        str | None,
        one_of(choices.GPUS, help="GPU to predict for", more=" (default: all)", panel=_MODEL),
    ] = None,
    dtype: Annotated[
        str | None,
        one_of(
            choices.DTYPES, help="Type of the numbers", more=" (default: float32)", panel=_MODEL
        ),
    ] = None,
    launch_us: Annotated[
        float | None,
        number_in(
            0,
            1e6,
            help="Overhead of a kernel launch that is assumed, in microseconds (default: 4).",
            panel=_MODEL,
        ),
    ] = None,
) -> None:
    """Measure training steps, epochs and memory beside named baselines; ratios are theirs over ours."""
    from spela.files.atomic import write_atomically

    if json_file is not None and not json_file.parent.is_dir():
        raise ValueError(f"--json {json_file}: the folder {json_file.parent} does not exist")
    if json_file is not None and json_file.is_dir():
        raise ValueError(f"--json {json_file} is a folder: name a file")
    if json_file is not None and not os.access(json_file.parent, os.W_OK):
        raise ValueError(f"--json {json_file}: the folder {json_file.parent} cannot be written to")
    if model:
        if groups:
            raise ValueError(f"--model is one table: leave {' '.join(groups)} out")
        refuse_unread("a model", quick=quick or None, threads=threads, device=device)
        figures = _modelled(gpu, dtype or "float32", launch_us)
    else:
        refuse_unread("measuring, without --model", gpu=gpu, dtype=dtype, launch_us=launch_us)
        figures = _measured(groups, quick, threads, pick_device(device or "cpu"))
    if json_file is not None:
        text = json.dumps(figures, indent=2) + "\n"
        write_atomically(json_file, text)


def _measured(
    groups: list[str] | None, quick: bool, threads: int | None, device: torch.device
) -> dict[str, Any]:
    import torch

    from spela.benchmarks import format_rows, groups_of, run_groups, to_json
    from spela.process.machine import describe_machine

    measured = run_groups(groups or groups_of(str(device)), quick, str(device))
    set_threads(threads)
    rows = []
    # Name, clocks and memory meters are those of the current GPU.
    with nullcontext() if device.type == "cpu" else torch.cuda.device(device):
        machine = {**describe_machine(), "device": str(device)}
        typer.echo("  ".join(f"{name} {value}" for name, value in machine.items()))
        typer.echo(
            "Medians of steps that take turns; last column: the figure over ours, of blocks over backprop's. "
            "`floor` is the products alone, by the fastest library call. Parity is checked first.\n"
        )
        for found in measured:
            typer.echo(format_rows(found))
            rows += found
    return to_json(rows, machine, quick)


def _modelled(gpu: str | None, dtype: str, launch_us: float | None) -> dict[str, Any]:
    from spela.benchmarks.modelled import format_table, model_steps, to_json
    from spela_kernels.cost.roofline import GPUS, LAUNCH_US, REPLAY_US, WAIT_US, find_gpu

    launch_us = LAUNCH_US if launch_us is None else launch_us
    gpus = list(GPUS.values()) if gpu is None else [find_gpu(gpu)]
    rows = model_steps(gpus, dtype, launch_us)
    typer.echo(
        f"A model, not a measurement: one SPELA step (SGD), {dtype}; ours / eager PyTorch's, which takes the "
        "layers of a network one by one.\nTime of a launch = max(bytes / bandwidth, bytes / the cache's, "
        f"flops / peak) + its waits for memory, {WAIT_US:g} us each,\n+ {launch_us:g} us, an assumed "
        "overhead that decides most rows (--launch-us); a graph has it once, and "
        f"{min(REPLAY_US, launch_us):g} us between kernels.\n"
        "`of minimum`: our bytes over those that any such step must move."
    )
    typer.echo(format_table(rows))
    for row in gpus:
        typer.echo(f"{row.name}: {row.bandwidth:g} GB/s, {row.cache_mib} MiB cache. {row.source}")
    return to_json(rows, gpus, dtype, launch_us)
