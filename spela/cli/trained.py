"""`spela evaluate`, `predict` and `info`: the commands that use or describe a trained network."""

from __future__ import annotations

import importlib.util
import os
import platform
from pathlib import Path
from typing import Annotated

import torch
import typer

import spela
from spela.cli.early_exit import print_early_exit
from spela.cli.options import (
    DataRoot,
    Device,
    RunDir,
    Threads,
    parse_path,
    path_option,
    pick_device,
    print_accuracy,
    print_batch_statistics,
    print_top5,
    refuse_unread,
    set_threads,
)
from spela.cli.settings import settings_in_force
from spela.data import check_scale, dataset_names, is_available, prepare, read_inputs
from spela.experiments import LoadedRun, load_data, load_run
from spela.reports.card import as_markdown, as_text, describe, printable
from spela.training import batch_statistics_accuracy, evaluate
from spela.training.records import write_atomically
from spela_kernels.cpu.products import fits
from spela_kernels.linear import compiled as rows
from spela_kernels.pooling import compiled as maps

__all__ = ["evaluate_command", "info", "predict"]


def _check_folder(run_dir: Path) -> None:
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is not a folder: give the --out folder of a training run")


def _loaded(run_dir: Path, device: torch.device) -> LoadedRun:
    _check_folder(run_dir)
    return load_run(run_dir, device)


def evaluate_command(
    run_dir: RunDir,
    data: Annotated[str | None, typer.Option(help="Other data than the run's own.")] = None,
    data_root: DataRoot = None,
    threads: Threads = None,
    device: Device = "auto",
    split: Annotated[
        str, typer.Option(help="test, or train: what the run learnt by heart shows here.")
    ] = "test",
    exit_loss: Annotated[
        float | None,
        typer.Option(
            help="Also measure early exit that may lose this share of answers, such as 0.002."
        ),
    ] = None,
) -> None:
    """Print the accuracy of every layer, from the checkpoint."""
    if split not in ("test", "train"):
        raise ValueError(f"unknown --split {split!r}: use test or train")
    if split == "train" and exit_loss is not None:
        raise ValueError("--exit-loss is measured on the test split: leave --split out")
    if exit_loss is not None and not 0 <= exit_loss <= 1:
        raise ValueError(f"--exit-loss must be a share in 0..1, such as 0.002, got {exit_loss}")
    set_threads(threads)
    where = pick_device(device)
    loaded = _loaded(run_dir, where)
    checkpoint = loaded.checkpoint
    dataset = load_data(checkpoint.config, data_root, data)
    if dataset.sample_shape != checkpoint.sample_shape:
        raise ValueError(
            f"{dataset.name} has samples of shape {dataset.sample_shape}, the run was trained on "
            f"{checkpoint.sample_shape}"
        )
    if dataset.num_classes != len(checkpoint.class_names):
        raise ValueError(
            f"{dataset.name} has {dataset.num_classes} classes, the run was trained on "
            f"{len(checkpoint.class_names)}"
        )
    dataset = dataset.to(where)
    x, y = dataset.test_x, dataset.test_y
    if split == "train":
        x, y = dataset.train_x, dataset.train_y
    check_scale(x, checkpoint.sample_dtype, dataset.name)
    result = evaluate(loaded.net, x, y)
    typer.echo(f"{dataset.name}, {len(y):,} {split} samples, epoch {checkpoint.epoch}:")
    print_accuracy(result.accuracy, result.vote_accuracy)
    print_top5(result.top5_accuracy)
    size = checkpoint.config.batch_size
    print_batch_statistics(batch_statistics_accuracy(loaded.net, x, y, size))
    if exit_loss is not None:
        print_early_exit(loaded.net, dataset, exit_loss)


def predict(
    run_dir: RunDir,
    file: Annotated[
        Path,
        typer.Argument(
            help="Image, folder of images, idx, .npy or .npz file.",
            parser=parse_path,
            metavar="FILE",
        ),
    ],
    device: Device = "auto",
) -> None:
    """Label samples: a line each with index, label, class name and score (cosine, or logit)."""
    where = pick_device(device)
    loaded = _loaded(run_dir, where)
    names = loaded.checkpoint.class_names
    checkpoint = loaded.checkpoint
    inputs = read_inputs(file, checkpoint.sample_shape, train_dtype=checkpoint.sample_dtype)
    typer.echo("index\tlabel\tclass\tscore")
    start = 0
    for chunk in inputs.split(1000):
        with torch.no_grad():
            scores = loaded.net(prepare(chunk.to(where)))
        best = scores.max(dim=1)
        for offset, (label, score) in enumerate(
            zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ):
            typer.echo(f"{start + offset}\t{label}\t{printable(names[label])}\t{score:.4f}")
        start += len(chunk)


def info(
    run_dir: Annotated[
        Path | None,
        typer.Argument(help="Folder of a run (optional).", parser=parse_path, metavar="[RUN_DIR]"),
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Write the run's model card, in Markdown.")
    ] = False,
    out: Annotated[
        Path | None, path_option(help="File for the model card (default: the terminal).")
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Show versions, back-ends and datasets here, or what a run folder's checkpoint is."""
    if (card and run_dir is None) or (out is not None and not card):
        raise ValueError("a model card is written with: spela info DIR --card [--out FILE]")
    if run_dir is not None:
        refuse_unread("a run folder, whose data is not looked at", data_root=data_root)
    pick_device("auto")
    if run_dir is not None:
        _check_folder(run_dir)
        facts = describe(run_dir)
        if out is not None:
            write_atomically(
                out, lambda name: Path(name).write_text(as_markdown(facts), encoding="utf-8")
            )
            typer.echo(f"model card: {out}")
        else:
            typer.echo(as_markdown(facts) if card else as_text(facts))
        return
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
