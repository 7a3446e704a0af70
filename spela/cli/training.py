"""`spela demo` and `spela train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from spela.cli.options import (
    Backend,
    DataRoot,
    Device,
    ProgressBar,
    Threads,
    chosen_backend,
    going_on,
    path_option,
    pick_device,
    print_accuracy,
    print_batch_statistics,
    print_top5,
    refuse_unread,
    set_threads,
)
from spela.cli.parallel import Parallel, RankTimeout, join, main_first
from spela.data import Dataset, dataset_names, is_available, load_dataset
from spela.distributed import Ranks, SharedRunFolder, run_parallel
from spela.experiments import RECIPES, load_data, load_run, make_config
from spela.experiments import run as run_training
from spela.reports.run import write_report
from spela.training import (
    Listener,
    Listeners,
    RunConfig,
    RunFolder,
    TensorBoardListener,
    extension_note,
)
from spela_kernels import ACTIVATIONS, OBJECTIVES

__all__ = ["demo", "train"]

_RECIPE_HELP = "Preset; " + "; ".join(
    f"for {model}: {', '.join(recipes)}" for model, recipes in RECIPES.items()
)


def _train(
    config: RunConfig,
    dataset: Dataset,
    out: Path,
    resume: bool,
    device: torch.device,
    ranks: Ranks | None = None,
    parallel: str = "",
    tensorboard: bool = False,
    extend: bool = False,
) -> None:
    shape = "x".join(map(str, dataset.sample_shape))
    start = shape if config.channels else str(dataset.num_features)
    sizes = "-".join([start, *(f"{n}c" for n in config.channels), *map(str, config.layers)])
    where = str(device) if ranks is None else f"{ranks.size} processes, {parallel} parallel"
    _say(
        ranks,
        f"{config.method} {sizes} on {dataset.name} ({len(dataset.train_y):,} training, "
        f"{len(dataset.test_y):,} test samples), recipe {config.recipe}, seed {config.seed}, {where}",
    )
    listeners: list[Listener] = [ProgressBar()]
    if tensorboard:
        listeners.append(TensorBoardListener(out / "tensorboard"))
    listener = Listeners(listeners)
    folder = RunFolder(out) if ranks is None else SharedRunFolder(out, ranks)
    with folder.writing():
        if ranks is None:
            summary = run_training(
                config,
                dataset,
                out,
                resume=resume,
                extend=extend,
                device=device,
                listener=listener,
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
        note = extension_note(config, summary.get("extended_at", []))
        if note:
            typer.echo(note)
        typer.echo(f"run folder: {out}")
        try:
            report = write_report(RunFolder(out), load_run(out, device), dataset.to(device))
        except OSError as error:
            raise OSError(
                f"the run is finished and safe, its report is not written ({error}): with room for it, the "
                "same settings with --resume write it"
            ) from error
    typer.echo(f"report:     {report}")


def _say(ranks: Ranks | None, line: str) -> None:
    if ranks is None or ranks.is_main:
        typer.echo(line)


def demo(
    out: Annotated[
        Path | None, path_option(help="Run folder (default: a new runs/demo-N).")
    ] = None,
    data_root: DataRoot = None,
    threads: Threads = None,
) -> None:
    """Train a SPELA network on real images in about a minute and write a report."""
    set_threads(threads)
    where = pick_device("cpu")
    name = "fashion-mnist" if is_available("fashion-mnist", data_root) else "digits"
    if name == "digits":
        typer.echo(
            "Fashion-MNIST is not on this machine; training on scikit-learn's digits. For the real "
            "thing: apt-get install dataset-fashion-mnist, or `spela train --data fashion-mnist`."
        )
    if out is None:
        number = 1
        while Path("runs", f"demo-{number}").exists():
            number += 1
        out = Path("runs", f"demo-{number}")
    epochs = 3 if name == "fashion-mnist" else 20
    config = make_config(name, "best", layers=(512, 512, 512), epochs=epochs)
    dataset = load_dataset(name, data_root, download=False)
    _train(config, dataset, out, False, where)


def _sizes(option: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} must be sizes such as 1024,1024, got {text!r}") from None


def train(
    out: Annotated[Path, path_option(help="Run folder to create (or continue, with --resume).")],
    data: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(dataset_names())}, an .npz or .safetensors file, or a folder of idx files."
        ),
    ] = "fashion-mnist",
    model: Annotated[
        str, typer.Option(help="mlp (linear layers) or cnn (convolutions, and perhaps a head).")
    ] = "mlp",
    recipe: Annotated[str, typer.Option(help=_RECIPE_HELP)] = "best",
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers", "--head", help="Output sizes of the linear layers: 1024,1024,1024."
        ),
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help="Kernels of each convolution layer, such as 128,128.")
    ] = None,
    kernel_size: Annotated[int | None, typer.Option(help="Of the convolutions, in pixels.")] = None,
    symmetric_dim: Annotated[
        int | None, typer.Option(help="Dimension of the convolutions' class vectors.")
    ] = None,
    projection_std: Annotated[
        float | None, typer.Option(help="Of the convolutions' projections at the start.")
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(help="Class groups of a kernel: all, a number, or a range as 2:10."),
    ] = None,
    share_groups: Annotated[
        bool | None,
        typer.Option(
            "--share-groups/--own-groups",
            help="All convolutions sort the classes alike, or each in its own way.",
        ),
    ] = None,
    conv_objective: Annotated[str | None, typer.Option(help="Of the convolutions.")] = None,
    conv_scale: Annotated[
        float | None, typer.Option(help="Factor of the convolutions' scores in softmax.")
    ] = None,
    resize: Annotated[int | None, typer.Option(help="Images to this many pixels a side.")] = None,
    noise: Annotated[
        float | None, typer.Option(help="Standard deviation of noise on all pixels (0..1).")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the training data. With --resume it may be larger than before: the learning "
            "rate goes on at its place in the longer schedule, where cosine jumps back up, so that the "
            "result is not that of one run of so many epochs; constant and drop give the same as one run."
        ),
    ] = None,
    head_epochs: Annotated[
        int | None,
        typer.Option(
            help="Further passes for the head alone, on frozen convolutions (0: together)."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of vectors, weights, shuffling and dropout.")] = 0,
    batch_size: Annotated[int | None, typer.Option(help="Samples a step.")] = None,
    objective: Annotated[str | None, typer.Option(help=f"{', '.join(OBJECTIVES)}.")] = None,
    scale: Annotated[float | None, typer.Option(help="Factor of the cosines in softmax.")] = None,
    activation: Annotated[str | None, typer.Option(help=f"{', '.join(ACTIVATIONS)}.")] = None,
    negative_slope: Annotated[float | None, typer.Option(help="Of leaky_relu.")] = None,
    vectors: Annotated[str | None, typer.Option(help="symmetric, gaussian, uniform.")] = None,
    init: Annotated[str | None, typer.Option(help="default, kaiming-normal.")] = None,
    bias_init: Annotated[
        str | None, typer.Option(help="default (zeros), uniform (as nn.Linear's).")
    ] = None,
    normalize_input: Annotated[
        str | None, typer.Option(help="Row norm before every layer: none, unit, rms.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, or bf16: 16-bit products over float32 weights and statistics."),
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(help="On the inputs of layers after the first.")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam, adamw.")] = None,
    lr: Annotated[float | None, typer.Option(help="Initial learning rate.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of sgd.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="L2 penalty.")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, cosine, drop.")] = None,
    shuffle: Annotated[
        bool | None, typer.Option("--shuffle/--no-shuffle", help="New order every epoch.")
    ] = None,
    diagnostics: Annotated[
        bool,
        typer.Option(
            "--diagnostics",
            help="Each epoch: dead units, cosine margins, agreement with backprop of every layer.",
        ),
    ] = False,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Also write TensorBoard files to OUT/tensorboard."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    data_root: DataRoot = None,
    threads: Threads = None,
    backend: Backend = None,
    device: Device = "auto",
    parallel: Parallel = None,
    rank_timeout: RankTimeout = None,
) -> None:
    """Train a network; write config, metrics.jsonl, checkpoint, summary.json and report.html to --out."""
    config = make_config(
        data,
        recipe,
        seed,
        model=model,
        layers=_sizes("--layers", layers),
        channels=_sizes("--channels", channels),
        kernel_size=kernel_size,
        symmetric_dim=symmetric_dim,
        projection_std=projection_std,
        groups=groups,
        share_groups=share_groups,
        conv_objective=conv_objective,
        conv_scale=conv_scale,
        resize=resize,
        noise=noise,
        epochs=epochs,
        head_epochs=head_epochs,
        batch_size=batch_size,
        objective=objective,
        scale=scale,
        activation=activation,
        negative_slope=negative_slope,
        vectors=vectors,
        init=init,
        bias_init=bias_init,
        normalize_input=normalize_input,
        precision=precision,
        dropout=dropout,
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        shuffle=shuffle,
        diagnostics=diagnostics,
    )
    folder = RunFolder(out)
    if folder.holds_run() and not resume:
        raise ValueError(
            f"{out} already holds a run: continue it with --resume, or choose another --out"
        )
    if resume and not folder.holds_run():
        raise ValueError(f"{out} holds no run to continue: start one without --resume")
    if not parallel:
        refuse_unread("one process, without --parallel", rank_timeout=rank_timeout)
    if parallel and (diagnostics or tensorboard):
        raise ValueError("--diagnostics and --tensorboard are for runs without --parallel")
    set_threads(threads)
    with (
        going_on(lambda: "go on with --resume" if folder.holds_run() else ""),
        chosen_backend(backend),
    ):
        # Joined after the checks of the folder, which rank 0 is then free to create.
        ranks = join(parallel, device, rank_timeout)
        where = pick_device(device if ranks is None else str(ranks.device))
        with main_first(ranks):
            dataset = load_data(config, data_root)
        _train(
            config,
            dataset,
            out,
            resume,
            where,
            ranks,
            parallel or "",
            tensorboard,
            extend=epochs is not None or head_epochs is not None,
        )
