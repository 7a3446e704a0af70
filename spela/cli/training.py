"""`spela demo` and `spela train`: training a network into a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from spela.cli import train_options as option
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
from spela.data import Dataset, is_available, load_dataset
from spela.distributed import Ranks, SharedRunFolder, run_parallel
from spela.experiments import load_data, load_run, make_config
from spela.experiments import run as run_training
from spela.reports.run import write_report
from spela.training import (
    Listener,
    Listeners,
    RunConfig,
    RunFolder,
    TensorBoardListener,
    check_graph_mode,
    extension_note,
)

__all__ = ["demo", "train"]


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
    graph: str = "auto",
) -> None:
    shape = "x".join(map(str, dataset.sample_shape))
    start = shape if config.channels else str(dataset.num_features)
    sizes = "-".join([start, *(f"{n}c" for n in config.channels), *map(str, config.layers)])
    if config.network:
        sizes = f"{config.network}, blocks: {config.blocks}" if config.blocks else config.network
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


def _sizes(name: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name} must be sizes such as 1024,1024, got {text!r}") from None


def train(
    out: option.Out,
    data: option.Data = "fashion-mnist",
    model: option.Model = "mlp",
    recipe: option.Recipe = "best",
    layers: option.Layers = None,
    channels: option.Channels = None,
    kernel_size: option.KernelSize = None,
    symmetric_dim: option.SymmetricDim = None,
    projection_std: option.ProjectionStd = None,
    groups: option.Groups = None,
    share_groups: option.ShareGroups = None,
    conv_objective: option.ConvObjective = None,
    conv_scale: option.ConvScale = None,
    resize: option.Resize = None,
    noise: option.Noise = None,
    epochs: option.Epochs = None,
    head_epochs: option.HeadEpochs = None,
    seed: option.Seed = 0,
    batch_size: option.BatchSize = None,
    objective: option.Objective = None,
    scale: option.Scale = None,
    activation: option.Activation = None,
    negative_slope: option.NegativeSlope = None,
    vectors: option.Vectors = None,
    init: option.Init = None,
    bias_init: option.BiasInit = None,
    normalize_input: option.NormalizeInput = None,
    precision: option.Precision = None,
    dropout: option.Dropout = None,
    optimizer: option.Optimizer = None,
    lr: option.Lr = None,
    momentum: option.Momentum = None,
    weight_decay: option.WeightDecay = None,
    head_weight_decay: option.HeadWeightDecay = None,
    schedule: option.Schedule = None,
    shuffle: option.Shuffle = None,
    width: option.Width = None,
    blocks: option.Blocks = None,
    readout: option.Readout = None,
    head_channels: option.HeadChannels = None,
    head_hidden: option.HeadHidden = None,
    projection: option.Projection = None,
    similarity: option.Similarity = None,
    augment: option.Augment = None,
    diagnostics: option.Diagnostics = False,
    tensorboard: option.Tensorboard = False,
    resume: option.Resume = False,
    data_root: DataRoot = None,
    threads: Threads = None,
    backend: Backend = None,
    device: Device = "auto",
    graph: option.Graph = "auto",
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
        head_weight_decay=head_weight_decay,
        schedule=schedule,
        shuffle=shuffle,
        width=width,
        blocks=blocks,
        readout=readout,
        head_channels=head_channels,
        head_hidden=head_hidden,
        projection=projection,
        similarity=similarity,
        augment=augment,
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
    if parallel and graph == "on":
        raise ValueError(
            "--graph on is for runs without --parallel, whose processes wait for each other"
        )
    set_threads(threads)
    with (
        going_on(lambda: "go on with --resume" if folder.holds_run() else ""),
        chosen_backend(backend),
    ):
        # Joined after the checks of the folder, which rank 0 is then free to create.
        ranks = join(parallel, device, rank_timeout)
        where = pick_device(device if ranks is None else str(ranks.device))
        check_graph_mode(graph, where)
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
            graph=graph,
        )
