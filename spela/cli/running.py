"""Training a run as `spela train` and `spela demo` do: what they say, the run, its page."""

from __future__ import annotations

import math
from contextlib import ExitStack, closing
from pathlib import Path

import torch
import typer
from torch import Tensor

from spela.cli.accuracies import print_accuracy, print_batch_statistics, print_top5
from spela.cli.progress import ProgressBar
from spela.data import Dataset
from spela.distributed import Ranks, SharedRunFolder, run_parallel
from spela.experiments import load_run
from spela.experiments import run as run_training
from spela.files.text import printable
from spela.layers import Standardize
from spela.process import multiplies_bf16
from spela.training import (
    Listeners,
    RunConfig,
    RunFolder,
    TensorBoardListener,
    extension_note,
)
from spela.training.config import NOT_STANDARDIZED
from spela.training.schedule import learning_rate

__all__ = ["chance_note", "few_steps_note", "scaling_note", "train_run"]

# Steps below which the note is given: the recipes' epochs were chosen on 60,000 images, where they are more.
_FEW = 1000
# From how many deviations off zero, or times the median deviation, a note is given.
_FAR, _UNEVEN = 10.0, 100.0


def train_run(
    config: RunConfig,
    dataset: Dataset,
    out: Path,
    resume: bool,
    device: torch.device,
    ranks: Ranks | None = None,
    parallel: str = "",
    tensorboard: bool = False,
    extend: bool = False,
    graph: str = "auto",
) -> None:
    """Train a run into its folder, print its accuracies and write its report.

    Args:
        config: The run's settings.
        dataset: Its data.
        out: The run folder.
        resume: Continue the run in `out`.
        device: Where to compute.
        ranks: The processes of the job; None: this one alone.
        parallel: How they share the work.
        tensorboard: Also write TensorBoard files.
        extend: When resuming, `config` may have more epochs.
        graph: Whether a step is one CUDA graph: auto, on or off.
    """
    lines = _opening(config, dataset, device, ranks, parallel)
    if not resume and (note := scaling_note(config, dataset)):
        lines.append(note)
    # Shown when the first epoch begins: nothing can refuse the run's settings any more.
    bar = ProgressBar(lines if ranks is None or ranks.is_main else [])
    curves = [TensorBoardListener(out / "tensorboard")] if tensorboard else []
    listener = Listeners([bar, *curves])
    folder = RunFolder(out) if ranks is None else SharedRunFolder(out, ranks)
    with ExitStack() as stack:
        stack.enter_context(closing(bar))
        for watching in curves:
            stack.enter_context(closing(watching))
        stack.enter_context(folder.writing())
        if ranks is None:
            summary = run_training(
                config,
                dataset,
                out,
                resume=resume,
                extend=extend,
                device=device,
                listener=listener,
                graph=graph,
            )
        else:
            summary = run_parallel(
                config,
                dataset,
                out,
                ranks,
                parallel,
                resume=resume,
                extend=extend,
                listener=listener,
            )
            ranks.leave()
            if not ranks.is_main:
                return
        typer.echo("test accuracy:")
        print_accuracy(summary["test_accuracy"], summary["vote_accuracy"])
        print_top5(summary.get("top5_accuracy"))
        print_batch_statistics(summary.get("test_accuracy_batch_statistics"))
        notes = (
            extension_note(config, summary.get("extended_at", [])),
            few_steps_note(config, len(dataset.train_y)),  # first: with few, no rate is to blame
            chance_note(
                summary["test_accuracy"], dataset.test_y, scaled=not scaling_note(config, dataset)
            ),
        )
        for note in filter(None, notes):
            typer.echo(note)
        typer.echo(f"run folder: {out}")
        # Here, because it imports matplotlib: training need not wait for that.
        from spela.reports.run import write_report

        try:
            report = write_report(RunFolder(out), load_run(out, device), dataset.to(device))
        except OSError as error:
            raise OSError(
                f"the run is finished and safe, its report is not written ({error}): once it can be, "
                "the same settings with --resume write it"
            ) from error
    typer.echo(f"report:     {report}")


def scaling_note(config: RunConfig, dataset: Dataset) -> str:
    """What to try where features lie far from zero, or one varies far more than the others; else nothing.

    Args:
        config: The run's settings.
        dataset: Its data; pixels have one scale.

    Returns:
        One sentence, or ""; nothing for a method that would refuse it.

    Example:
        >>> from spela.experiments import make_config
        >>> x, y = torch.tensor([[999.0, 1000.0], [1001.0, 1002.0]]), torch.tensor([0, 1])
        >>> far = Dataset("far", x, y, x, y, num_classes=2, class_names=("a", "b"))
        >>> scaling_note(make_config("far.npz"), far)
        'features lie 1000 deviations from zero, where layers learn little: try --standardize'
    """
    if config.standardize or dataset.train_x.dtype == torch.uint8:
        return ""
    if config.method in NOT_STANDARDIZED:
        return ""
    scale = Standardize(dataset.sample_shape).fit(dataset.train_x)
    distance = float((scale.mean.abs() / scale.deviation).median())
    ratio = float(scale.deviation.max() / scale.deviation.median())
    if distance > _FAR:
        found = f"features lie {distance:.0f} deviations from zero"
    elif ratio > _UNEVEN:
        found = f"one feature varies {ratio:.0f} times as much as most"
    else:
        return ""
    return f"{found}, where layers learn little: try --standardize"


def chance_note(accuracy: list[float], labels: Tensor, scaled: bool = True) -> str:
    """What to try where no layer names more labels than the commonest class has; nothing where one does.

    Args:
        accuracy: Of every layer, 0..1.
        labels: (N,) of the test samples.
        scaled: Whether the features have scales that layers learn from.

    Returns:
        One sentence, or ""; nothing where there is one class alone.

    Example:
        >>> labels = torch.tensor([0, 1, 1, 2])
        >>> chance_note([0.25, 0.5], labels)
        'no layer is better than naming one class for all, 50.0 %: try another --lr'
        >>> chance_note([0.25, 0.75], labels)
        ''
    """
    share = float(labels.bincount().max()) / len(labels)
    if max(accuracy) > share or share == 1:
        return ""
    option = "another --lr" if scaled else "--standardize"
    return f"no layer is better than naming one class for all, {100 * share:.1f} %: try {option}"


def few_steps_note(config: RunConfig, samples: int) -> str:
    """What to try where a run had few steps, as the recipes give small data; nothing where it had more.

    Args:
        config: The run's settings.
        samples: In the training set.

    Returns:
        One sentence, or "".

    Example:
        >>> from spela.experiments import make_config
        >>> few_steps_note(make_config("digits", epochs=5, batch_size=100), 1437)
        'only 75 steps: try more --epochs, such as 67, or a smaller --batch-size'
        >>> few_steps_note(make_config("digits", epochs=5), 60_000)
        ''
    """
    in_an_epoch = math.ceil(samples / config.batch_size)
    enough = math.ceil(_FEW / in_an_epoch)
    parts = (
        ("", "--epochs", config.epochs),
        ("the head had ", "--head-epochs", config.head_epochs),
    )
    for who, option, epochs in parts:
        steps = epochs * in_an_epoch
        if 0 < steps < _FEW:
            return (
                f"{who}only {steps} step{'' if steps == 1 else 's'}: try more {option}, such as {enough}, "
                "or a smaller --batch-size"
            )
    return ""


def _opening(
    config: RunConfig, dataset: Dataset, device: torch.device, ranks: Ranks | None, parallel: str
) -> list[str]:
    """What is trained on what and where, and what there is to say of that."""
    shape = "x".join(map(str, dataset.sample_shape))
    start = shape if config.channels else str(dataset.num_features)
    sizes = "-".join([start, *(f"{n}c" for n in config.channels), *map(str, config.layers)])
    if config.network:
        sizes = f"{config.network}, blocks: {config.blocks}" if config.blocks else config.network
    where = str(device) if ranks is None else f"{ranks.size} processes, {parallel} parallel"
    lines = [
        f"{config.method} {sizes} on {printable(dataset.name)} ({len(dataset.train_y):,} training, "
        f"{len(dataset.test_y):,} test samples), recipe {config.recipe}, seed {config.seed}, {where}"
    ]
    if config.precision == "bf16" and device.type == "cpu" and multiplies_bf16() is False:
        lines.append(
            "this processor has no products in bf16: fp32 takes a fraction of the time here"
        )
    rates = [learning_rate(config, epoch, 0, 1) for epoch in range(config.total_epochs)]
    if 0.0 in rates:
        lines.append(
            f"from epoch {rates.index(0.0) + 1} on the learning rate is 0: schedule {config.schedule} "
            f"lowers {config.lr:g} by {config.lr_drop:g} every 10 epochs"
        )
    return lines
