"""`spela evaluate` and `spela predict`: the commands that use a trained network."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spela.choices import ANSWERS, SPLITS
from spela.cli.options import (
    DATA,
    DataRoot,
    Device,
    Json,
    RunDir,
    Threads,
    not_empty,
    one_of,
    parse_path,
    pick_device,
    print_json,
    set_threads,
)
from spela.files.text import printable

if TYPE_CHECKING:
    import torch
    from torch import nn

    from spela.data import Dataset
    from spela.experiments import LoadedRun
    from spela.training import Checkpoint

__all__ = ["check_folder", "evaluate_command", "predict", "refuse_own_file"]

# Samples from which on their spread says something, and how far from the learnt one it is another unit's.
_ENOUGH, _UNEVEN = 10, 10.0
_logger = logging.getLogger(__name__)


def check_folder(run_dir: Path) -> None:
    """Refuse what cannot be a run folder. ValueError."""
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is not a folder: give the --out folder of a training run")


def refuse_own_file(run_dir: Path, out: Path) -> None:
    """Refuse to write over a file of the run itself. ValueError."""
    from spela.training import RunFolder

    if out.resolve() in {file.resolve() for file in RunFolder(run_dir).files}:
        raise ValueError(f"{out} is a file of the run itself: choose another --out")


def _loaded(run_dir: Path, device: torch.device) -> LoadedRun:
    from spela.experiments import load_run

    check_folder(run_dir)
    loaded = load_run(run_dir, device)
    if not all(bool(weights.isfinite().all()) for weights in loaded.net.parameters()):
        raise ValueError(
            f"the weights in {run_dir} are not finite, and its answers mean nothing: train it again with a "
            "lower --lr"
        )
    return loaded


def _check_digits(x: torch.Tensor, file: Path) -> None:
    """Refuse digits as scikit-learn has them, from 0 to 16: here they run from 0 to 1."""
    highest = float(x.max())
    if highest > 1 and (x.is_floating_point() or highest <= 16):
        raise ValueError(
            f"{file} holds values up to {highest:g}, but this network learnt digits from 0 to 1: divide "
            "scikit-learn's by 16, in float32"
        )


def _warn_of_scale(net: nn.Module, x: torch.Tensor, where: str) -> None:
    """Warn of features in another unit than those that a network standardises: its answers mean little."""
    from spela.data import prepare
    from spela.layers import Standardize

    scale = next((module for module in net.modules() if isinstance(module, Standardize)), None)
    if scale is None or len(x) < _ENOUGH:
        return
    rows = scale(prepare(x[:: -(-len(x) // 1000)]))
    axes = [axis for axis in range(rows.dim()) if axis != 1]
    # Means over the features, of which some may vary little in these samples, or much; about 1 or less in the
    # unit that was learnt.
    spread = float(rows.std(axes, correction=0).mean())
    distance = float(rows.mean(axes).abs().mean())
    if spread < 1 / _UNEVEN or max(spread, distance) > _UNEVEN:
        _logger.warning(
            "%s: features vary %.3g times as much as those that the network learnt, and lie %.3g deviations "
            "from them: are they in the same unit?",
            where,
            spread,
            distance,
        )


def _judged_by(
    run_dir: Path, checkpoint: Checkpoint, data: str | None, data_root: Path | None
) -> Dataset:
    """The run's own data, or what --data names, with the classes that the network answers in."""
    from spela.experiments import load_data
    from spela.experiments.runs import load_other_data

    learnt_from = checkpoint.config.data
    there = os.path.exists(os.path.expanduser(learnt_from))
    if data is None and Path(learnt_from).suffix and not there:
        raise ValueError(
            f"{run_dir} was trained on {learnt_from}, which is not here: say where it lies now, --data FILE"
        )
    if data is None:
        dataset = load_data(checkpoint.config, data_root)
        checkpoint.check_data(
            dataset,
            str(run_dir),
            "what it learnt may be among the test samples now; bring the data back, or say --data to "
            "judge by it",
        )
    else:
        dataset = load_other_data(checkpoint.config, data, data_root)
        with suppress(ValueError):  # other data need not allow the run's split
            own = load_data(checkpoint.config, data_root, data)
            # Of the run's own data, wherever they lie and though they grew, it learnt one part.
            if data == learnt_from or checkpoint.data_digest in ("", own.digest):
                dataset = own
    if dataset.sample_shape != checkpoint.sample_shape:
        raise ValueError(
            f"{dataset.name} has samples of shape {dataset.sample_shape}, the run was trained on "
            f"{checkpoint.sample_shape}"
        )
    return dataset.with_classes(checkpoint.class_names)


def evaluate_command(
    run_dir: RunDir,
    split: Annotated[
        str,
        one_of(
            SPLITS, help="Samples to judge by", more=" (what the run learnt by heart shows there)"
        ),
    ] = "test",
    exit_loss: Annotated[
        float | None,
        typer.Option(
            help="Also measure early exit that may lose this share of answers, such as 0.002."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Dataset or file to judge by, not the run's own: its test part, or all of x and y alone.",
            metavar="NAME",
            callback=not_empty,
            rich_help_panel=DATA,
        ),
    ] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Print the accuracy of every layer of a trained network."""
    from spela.cli.accuracies import print_accuracy, print_batch_statistics, print_top5
    from spela.cli.early_exit import early_exit_facts, measure_early_exit, print_early_exit
    from spela.data import check_scale
    from spela.training import batch_statistics_accuracy, evaluate

    if split not in SPLITS:
        raise ValueError(f"unknown --split {split!r}: use {' or '.join(SPLITS)}")
    if split == "train" and exit_loss is not None:
        raise ValueError("--exit-loss is measured on the test split: leave --split out")
    if exit_loss is not None and not 0 <= exit_loss <= 1:
        raise ValueError(f"--exit-loss must be a share in 0..1, such as 0.002, got {exit_loss}")
    set_threads(threads)
    where = pick_device(device)
    loaded = _loaded(run_dir, where)
    checkpoint = loaded.checkpoint
    dataset = _judged_by(run_dir, checkpoint, data, data_root).to(where)
    x, y = dataset.test_x, dataset.test_y
    if split == "train":
        x, y = dataset.train_x, dataset.train_y
    check_scale(x, checkpoint.sample_dtype, dataset.name)
    _warn_of_scale(loaded.net, x, dataset.name)
    result = evaluate(loaded.net, x, y)
    size = checkpoint.config.batch_size
    own = batch_statistics_accuracy(loaded.net, x, y, size)
    exits = None if exit_loss is None else measure_early_exit(loaded.net, dataset, exit_loss)
    if as_json:
        print_json(
            {
                "dataset": dataset.name,
                "split": split,
                "samples": len(y),
                "epoch": checkpoint.epoch,
                "accuracy": result.accuracy,
                "vote_accuracy": result.vote_accuracy,
                "top5_accuracy": result.top5_accuracy,
                "accuracy_batch_statistics": own,
                "early_exit": None if exits is None else early_exit_facts(exits),
            }
        )
        return
    name = printable(dataset.name)
    typer.echo(f"{name}, {len(y):,} {split} samples, epoch {checkpoint.epoch}:")
    print_accuracy(result.accuracy, result.vote_accuracy)
    print_top5(result.top5_accuracy)
    print_batch_statistics(own)
    if exits is not None and exit_loss is not None:
        print_early_exit(exits, exit_loss)


def predict(
    run_dir: RunDir,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Samples to label: images, a folder of images, or one idx, .npy, .npz or feature file.",
            parser=parse_path,
            metavar="FILE",
        ),
    ],
    answer: Annotated[
        str,
        one_of(ANSWERS, help="Which layers answer", more=" of all layers' scores"),
    ] = "last",
    as_json: Json = False,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Label samples of your own: index, label, class and score (cosine or logit), a line each.

    Images have their file's path too; those of a folder are labelled in the order of their names.
    """
    import torch

    from spela.data import prepare, read_inputs
    from spela.data.inputs import image_files, shows_images

    if answer not in ANSWERS:
        raise ValueError(f"unknown --answer {answer!r}: use {' or '.join(ANSWERS)}")
    set_threads(threads)
    where = pick_device(device)
    loaded = _loaded(run_dir, where)
    names = loaded.checkpoint.class_names
    checkpoint = loaded.checkpoint
    of_images = len(files) > 1 or shows_images(files[0])
    images = [image for file in files for image in image_files(file)] if of_images else []
    inputs = read_inputs(
        images or files[0],
        checkpoint.sample_shape,
        # Floats of 0..1, as pixels become: nothing to warn of.
        train_dtype=None if checkpoint.config.data == "digits" else checkpoint.sample_dtype,
    )
    if checkpoint.config.data == "digits" and not of_images:
        _check_digits(inputs, files[0])
    _warn_of_scale(loaded.net, inputs.to(where), str(files[0]))
    answers: list[tuple[int, float]] = []
    for chunk in inputs.split(1000):
        with torch.no_grad():
            x = prepare(chunk.to(where))
            if answer == "mean":
                scores = torch.stack(loaded.net.layer_scores(x)).mean(dim=0)
            else:
                scores = loaded.net(x)
        best = scores.max(dim=1)
        answers += zip(best.indices.tolist(), best.values.tolist(), strict=True)
    if as_json:
        print_json(
            [
                {"index": index, "label": label, "class": names[label], "score": score}
                | ({"file": str(images[index])} if images else {})
                for index, (label, score) in enumerate(answers)
            ]
        )
        return
    typer.echo("index\tlabel\tclass\tscore" + "\tfile" * of_images)
    for index, (label, score) in enumerate(answers):
        image = f"\t{printable(str(images[index]))}" if images else ""
        typer.echo(f"{index}\t{label}\t{printable(names[label])}\t{score:.4f}{image}")
