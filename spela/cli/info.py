"""`spela info`: what is installed here, or what a run folder's checkpoint is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spela.cli.options import DataRoot, parse_path, path_option, pick_device, refuse_unread
from spela.cli.trained import check_folder

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
    data_root: DataRoot = None,
) -> None:
    """Show versions, back-ends and datasets of this installation, or what a trained network is."""
    if (card and run_dir is None) or (out is not None and not card):
        raise ValueError("a model card is written with: spela info DIR --card [--out FILE]")
    if run_dir is not None:
        refuse_unread("a run folder, whose data is not looked at", data_root=data_root)
    pick_device("auto")
    if run_dir is None:
        _show_installation(data_root)
    else:
        _show_run(run_dir, card, out)


def _show_run(run_dir: Path, card: bool, out: Path | None) -> None:
    from spela.reports.card import as_markdown, as_text, describe
    from spela.training.records import write_atomically

    check_folder(run_dir)
    facts = describe(run_dir)
    if out is None:
        typer.echo(as_markdown(facts) if card else as_text(facts))
        return
    write_atomically(out, lambda name: Path(name).write_text(as_markdown(facts), encoding="utf-8"))
    typer.echo(f"model card: {out}")


def _show_installation(data_root: Path | None) -> None:
    import importlib.util
    import os
    import platform

    import torch

    import spela
    from spela.cli.settings import settings_in_force
    from spela.data import dataset_names, is_available
    from spela_kernels.cpu.products import fits
    from spela_kernels.linear import compiled as rows
    from spela_kernels.pooling import compiled as maps

    typer.echo(
        f"spela {spela.__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    typer.echo(f"triton: {'installed' if importlib.util.find_spec('triton') else 'not installed'}")
    built = (
        "compiled"
        if fits() and rows.is_built() and maps.is_built()
        else "not all compiled (no C compiler that can, when this was installed)"
    )
    typer.echo(f"passes of the CPU back-end: {built}")
    typer.echo(f"threads: {torch.get_num_threads()} of {os.cpu_count()} cores")
    for line in settings_in_force(data_root):
        typer.echo(line)
    for name in dataset_names():
        found = "here" if is_available(name, data_root) else "downloaded when first used"
        typer.echo(f"  {name}: {found}")
