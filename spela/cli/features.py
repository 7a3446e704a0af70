"""`spela features`: images to a file of pooled features of a pretrained backbone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from spela.choices import BACKBONES, DATASETS
from spela.cli.options import (
    COMPUTING,
    DATA,
    DataRoot,
    Device,
    Threads,
    one_of,
    path_option,
    pick_device,
    set_threads,
)

__all__ = ["features"]


def features(
    data: Annotated[
        str,
        one_of(DATASETS, help="Images to read", more="; or an .npz file or a folder of idx files"),
    ] = "fashion-mnist",
    backbone: Annotated[
        str,
        one_of(
            BACKBONES, help="Pretrained network", more="; or a model of timm, where it is installed"
        ),
    ] = "efficientnet-lite0",
    size: Annotated[int, typer.Option(help="Pixels a side that images are resized to.")] = 96,
    train_samples: Annotated[
        int | None,
        typer.Option(
            help="Number of training samples, drawn at random (default: all).", rich_help_panel=DATA
        ),
    ] = None,
    test_samples: Annotated[
        int | None,
        typer.Option(
            help="Number of test samples, drawn at random (default: all).", rich_help_panel=DATA
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(min=0, max=2**63 - 1, help="Seed of the samples drawn.", rich_help_panel=DATA),
    ] = 0,
    out: Annotated[
        Path | None,
        path_option(
            help="File to write (default: features/DATA-BACKBONE.safetensors in the data root)."
        ),
    ] = None,
    data_root: DataRoot = None,
    batch_size: Annotated[
        int,
        typer.Option(min=1, help="Images computed at a time.", rich_help_panel=COMPUTING),
    ] = 32,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Turn images into features of a pretrained network: a file to train on, `train --data FILE`."""
    from tqdm import tqdm

    from spela.data import default_data_root, load_images
    from spela.features import (
        Selection,
        describe,
        extract_features,
        feature_file,
        is_cached,
        load_backbone,
        save_features,
    )

    set_threads(threads)
    where = pick_device(device)
    images = load_images(data, data_root)
    chosen = Selection(train_samples, test_samples, seed)
    extractor = load_backbone(backbone, size)
    facts = describe(images, extractor, size, chosen)
    if out is None:
        out = feature_file(data_root or default_data_root(), images.name, backbone)
    there = next(folder for folder in (out.parent, *out.absolute().parents) if folder.exists())
    if out.is_dir():
        raise ValueError(f"{out} is a folder: give --out the name of a file")
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(
            f"cannot write {out}: give --out a file in a folder that can be written to"
        )
    if is_cached(out, facts):
        typer.echo(f"{out} already holds these features")
    else:
        with tqdm(unit="image", leave=False, disable=None) as bar:

            def advance(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            found = extract_features(
                images,
                extractor,
                size,
                chosen,
                batch_size=batch_size,
                device=where,
                on_batch=advance,
            )
        save_features(out, found, facts)
    _show(out, facts)


def _show(out: Path, facts: dict[str, Any]) -> None:
    typer.echo(
        f"{facts['dataset']} through {facts['backbone']} at {facts['size']} pixels: "
        f"{facts['train_samples']:,} training, {facts['test_samples']:,} test samples"
    )
    typer.echo(f"weights sha256 {facts['weights_sha256']}")
    typer.echo(f"features: {out}")
