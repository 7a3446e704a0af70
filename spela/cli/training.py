"""`spela demo` and `spela train`: training a network into a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spela.cli import train_options as option
from spela.cli.options import (
    Backend,
    DataRoot,
    Device,
    Threads,
    chosen_backend,
    going_on,
    path_option,
    pick_device,
    refuse_unread,
    set_threads,
)
from spela.cli.parallel import Parallel, RankTimeout, join, main_first

__all__ = ["demo", "train"]


def demo(
    out: Annotated[
        Path | None, path_option(help="Folder to create for the run (default: a new runs/demo-N).")
    ] = None,
    data_root: DataRoot = None,
    threads: Threads = None,
) -> None:
    """Train a SPELA network on real images in about a minute and write a report."""
    from spela.cli.running import train_run
    from spela.data import is_available, load_dataset
    from spela.experiments import make_config

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
    train_run(config, dataset, out, False, where)


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
    epochs: option.Epochs = None,
    seed: option.Seed = 0,
    resume: option.Resume = False,
    batch_size: option.BatchSize = None,
    optimizer: option.Optimizer = None,
    lr: option.Lr = None,
    schedule: option.Schedule = None,
    momentum: option.Momentum = None,
    weight_decay: option.WeightDecay = None,
    shuffle: option.Shuffle = None,
    precision: option.Precision = None,
    layers: option.Layers = None,
    objective: option.Objective = None,
    scale: option.Scale = None,
    activation: option.Activation = None,
    negative_slope: option.NegativeSlope = None,
    normalize_input: option.NormalizeInput = None,
    vectors: option.Vectors = None,
    init: option.Init = None,
    bias_init: option.BiasInit = None,
    dropout: option.Dropout = None,
    channels: option.Channels = None,
    kernel_size: option.KernelSize = None,
    symmetric_dim: option.SymmetricDim = None,
    projection_std: option.ProjectionStd = None,
    groups: option.Groups = None,
    share_groups: option.ShareGroups = None,
    conv_objective: option.ConvObjective = None,
    conv_scale: option.ConvScale = None,
    head_epochs: option.HeadEpochs = None,
    blocks: option.Blocks = None,
    width: option.Width = None,
    readout: option.Readout = None,
    head_channels: option.HeadChannels = None,
    head_hidden: option.HeadHidden = None,
    projection: option.Projection = None,
    similarity: option.Similarity = None,
    head_weight_decay: option.HeadWeightDecay = None,
    data_root: DataRoot = None,
    resize: option.Resize = None,
    noise: option.Noise = None,
    augment: option.Augment = None,
    standardize: option.Standardize = None,
    whiten: option.Whiten = None,
    diagnostics: option.Diagnostics = False,
    tensorboard: option.Tensorboard = False,
    threads: Threads = None,
    backend: Backend = None,
    device: Device = "auto",
    graph: option.Graph = "auto",
    parallel: Parallel = None,
    rank_timeout: RankTimeout = None,
) -> None:
    """Train a network on a dataset or your own file, into a folder with a report.

    The folder gets config.json, metrics.jsonl, a checkpoint every epoch, summary.json and report.html.
    """
    from spela.cli.running import train_run
    from spela.experiments import load_data, make_config
    from spela.training import RunFolder, check_graph_mode

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
        standardize=standardize,
        whiten=whiten,
        diagnostics=diagnostics,
    )
    folder = RunFolder(out)
    if not resume:
        folder.check_free()
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
        train_run(
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
