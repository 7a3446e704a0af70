"""`spela features`: images to a file of pooled features of a pretrained backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from spela.cli.options import DataRoot, Device, Threads, path_option, pick_device, set_threads
from spela.data import dataset_names, default_data_root, load_images
from spela.features import (
    Selection,
    backbone_names,
    describe,
    extract_features,
    feature_file,
    is_cached,
    load_backbone,
    save_features,
)

__all__ = ["features"]


def features(
    data: Annotated[
        str, typer.Option(help=f"{', '.join(dataset_names())}, or a file or folder of images.")
    ] = "fashion-mnist",
    backbone: Annotated[
        str, typer.Option(help=f"{', '.join(backbone_names())}, or a timm model if installed.")
    ] = "efficientnet-lite0",
    size: Annotated[int, typer.Option(help="Pixels a side that the backbone sees.")] = 96,
    train_samples: Annotated[
        int | None, typer.Option(help="Training samples, drawn at random (default: all).")
    ] = None,
    test_samples: Annotated[
        int | None, typer.Option(help="Test samples, drawn at random (default: all).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples drawn.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 32,
    out: Annotated[
        Path | None,
        path_option(
            help="File to write (default: features/DATA-BACKBONE.safetensors in the data root)."
        ),
    ] = None,
    data_root: DataRoot = None,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Extract pooled features with a pretrained backbone; the file is a dataset for `train --data`."""
    set_threads(threads)
    where = pick_device(device)
    images = load_images(data, data_root)
    chosen = Selection(train_samples, test_samples, seed)
    extractor = load_backbone(backbone, size)
    facts = describe(images, extractor, size, chosen)
    if out is None:
        out = feature_file(data_root or default_data_root(), images.name, backbone)
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
