"""`spela info`: what is installed here, or what a run folder's checkpoint is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spela.cli.options import (
    DataRoot,
    Json,
    parse_path,
    path_option,
    pick_device,
    print_json,
    refuse_unread,
)
from spela.cli.trained import check_folder, refuse_own_file

__all__ = ["info"]


def info(
    run_dir: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of a training run to describe (default: describe this installation).",
            parser=parse_path,
            metavar="RUN_DIR",
        ),
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Write the run's model card, in Markdown.")
    ] = False,
    out: Annotated[
        Path | None, path_option(help="File to write the model card to (default: the terminal).")
    ] = None,
    as_json: Json = False,
    data_root: DataRoot = None,
) -> None:
    """Show versions, back-ends and datasets of this installation, or what a trained network is."""
    if (card and run_dir is None) or (out is not None and not card):
        raise ValueError("a model card is written with: spela info DIR --card [--out FILE]")
    if card and as_json:
        raise ValueError("--json and --card are two forms of the same facts: leave one out")
    if run_dir is not None:
        refuse_unread("a run folder, whose data is not looked at", data_root=data_root)
    pick_device("auto")
    if run_dir is None:
        _show_installation(data_root, as_json)
    else:
        _show_run(run_dir, card, out, as_json)


def _show_run(run_dir: Path, card: bool, out: Path | None, as_json: bool) -> None:
    from spela.files.atomic import write_atomically
    from spela.reports.card import as_markdown, as_text, describe

    check_folder(run_dir)
    if out is not None:
        refuse_own_file(run_dir, out)
    facts = describe(run_dir)
    if as_json:
        checkpoint = facts.run.checkpoint
        print_json(
            {
                "epoch": checkpoint.epoch,
                "finished": facts.finished,
                "config": checkpoint.config.to_dict(),
                "classes": list(checkpoint.class_names),
                "sample_shape": list(checkpoint.sample_shape),
                "parameters": facts.parameters,
                "tensors": facts.tensors,
                "bytes": facts.size,
                "metrics": facts.metrics,
                "torch": checkpoint.torch_version,
                "made_by": list(checkpoint.made_by),
            }
        )
        return
    if out is None:
        typer.echo(as_markdown(facts) if card else as_text(facts))
        return
    write_atomically(out, as_markdown(facts))
    typer.echo(f"model card: {out}")


def _show_installation(data_root: Path | None, as_json: bool) -> None:
    import importlib.util
    import os
    import platform

    import torch

    import spela
    from spela.cli.settings import settings_in_force
    from spela.data import dataset_names, is_available
    from spela.process import multiplies_bf16
    from spela.process.machine import are_passes_compiled, describe_machine

    compiled = are_passes_compiled()
    spins = os.environ.get("GOMP_SPINCOUNT") or os.environ.get("OMP_WAIT_POLICY") or "OpenMP's"
    if as_json:
        print_json(
            {
                "spela": spela.__version__,
                "source": describe_machine()["source"],
                "python": platform.python_version(),
                "torch": torch.__version__,
                "triton": importlib.util.find_spec("triton") is not None,
                "compiled_passes": compiled,
                "threads": torch.get_num_threads(),
                "cores": os.cpu_count(),
                "spins": spins,
                "bf16_products": multiplies_bf16(),
                "settings": dict(line.split(": ", 1) for line in settings_in_force(data_root)),
                "datasets_here": [n for n in dataset_names() if is_available(n, data_root)],
            }
        )
        return
    typer.echo(
        f"spela {spela.__version__}, source {describe_machine()['source']}, Python "
        f"{platform.python_version()}, torch {torch.__version__}"
    )
    typer.echo(f"triton: {'installed' if importlib.util.find_spec('triton') else 'not installed'}")
    built = (
        "compiled"
        if compiled
        else "not all in use (no C compiler that can when this was installed, or C files that changed since)"
    )
    typer.echo(f"passes of the CPU back-end: {built}")
    typer.echo(
        f"threads: {torch.get_num_threads()} of {os.cpu_count()} cores; a waiting one spins {spins} turns"
    )
    products = {
        True: "yes",
        False: "no, they take several times as long as fp32",
        None: "not known",
    }
    typer.echo(f"products in bf16: {products[multiplies_bf16()]}")
    for line in settings_in_force(data_root):
        typer.echo(line)
    for name in dataset_names():
        found = "here" if is_available(name, data_root) else "downloaded when first used"
        typer.echo(f"  {name}: {found}")
