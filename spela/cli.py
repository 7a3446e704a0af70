"""The command line: demo, train, evaluate, predict, bench, info. The only file that prints or exits."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm

import spela
from spela.data import (
    Dataset,
    dataset_names,
    default_data_root,
    is_available,
    load_dataset,
    read_inputs,
)
from spela.data import prepare as prepare_inputs
from spela.experiments import RECIPES, LoadedRun, load_data, load_run, make_config
from spela.experiments import run as run_training
from spela.modelled import DTYPES, format_table, model_steps, to_json
from spela.report import write_report
from spela.training import RunConfig, RunFolder, TrainingDivergedError, evaluate
from spela_kernels import ACTIVATIONS, OBJECTIVES, available_backends, use_backend
from spela_kernels.roofline import GPUS, LAUNCH_US, find_gpu

__all__ = ["app", "bench", "demo", "evaluate_command", "info", "main", "predict", "train"]

app = typer.Typer(
    help="Train neural networks without backpropagation (SPELA).",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DataRoot = Annotated[
    Path | None,
    typer.Option(help="Where datasets are, or are downloaded to (default: SPELA_DATA_ROOT)."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads (default: torch's choice).")]
Backend = Annotated[
    str, typer.Option(help="Kernel back-end: auto, or a name that `spela info` lists.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
RunDir = Annotated[Path, typer.Argument(help="Folder of a run.")]
_RECIPE_HELP = "Preset; " + "; ".join(
    f"for {model}: {', '.join(recipes)}" for model, recipes in RECIPES.items()
)


class _ProgressBar:
    """Draws the loop's progress: a bar on a terminal, and one line an epoch anywhere."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.epochs = 0

    def on_epoch_start(self, epoch: int, epochs: int, steps: int) -> None:
        self.epochs = epochs
        self.bar = tqdm(
            total=steps, desc=f"epoch {epoch}/{epochs}", unit="step", leave=False, disable=None
        )

    def on_progress(self, steps_done: int, losses: list[float]) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str("loss " + " ".join(f"{v:.3f}" for v in losses), refresh=False)
            self.bar.update(steps_done - self.bar.n)

    def on_epoch_end(self, record: dict[str, Any]) -> None:
        if self.bar is not None:
            self.bar.close()
        accuracy = " ".join(f"{100 * a:5.2f}" for a in record["test_accuracy"])
        loss = " ".join(f"{v:.4f}" for v in record["train_loss"])
        epoch = f"epoch {record['epoch']}/{self.epochs}"
        typer.echo(f"{epoch}  accuracy % {accuracy}  loss {loss}  {record['seconds']:.1f} s")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here: {reason}") from None
    return device


def _print_accuracy(accuracy: list[float], vote: float) -> None:
    for layer, value in enumerate(accuracy, start=1):
        typer.echo(f"layer {layer}: {100 * value:.2f} %")
    if len(accuracy) > 1:
        typer.echo(f"all layers' mean score: {100 * vote:.2f} %")


def _train(
    config: RunConfig,
    dataset: Dataset,
    out: Path,
    resume: bool,
    device: torch.device,
    backend: str,
    threads: int | None,
) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    shape = "x".join(map(str, dataset.sample_shape))
    start = shape if config.channels else str(dataset.num_features)
    sizes = "-".join([start, *(f"{n}c" for n in config.channels), *map(str, config.layers)])
    typer.echo(
        f"{config.method} {sizes} on {dataset.name} ({len(dataset.train_y):,} training, "
        f"{len(dataset.test_y):,} test samples), recipe {config.recipe}, seed {config.seed}, {device}"
    )
    with use_backend(backend):
        summary = run_training(
            config, dataset, out, resume=resume, device=device, listener=_ProgressBar()
        )
        report = write_report(RunFolder(out), load_run(out, device), dataset.to(device))
    typer.echo("test accuracy:")
    _print_accuracy(summary["test_accuracy"], summary["vote_accuracy"])
    if "test_accuracy_batch_statistics" in summary:
        shares = ", ".join(f"{100 * a:.2f} %" for a in summary["test_accuracy_batch_statistics"])
        typer.echo(f"with each test batch's own statistics in batch norm: {shares}")
    typer.echo(f"run folder: {out}")
    typer.echo(f"report:     {report}")


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Run folder (default: a new runs/demo-N).")
    ] = None,
    data_root: DataRoot = None,
    threads: Threads = None,
) -> None:
    """Train a SPELA network on real images in about a minute and write a report."""
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
    _train(config, dataset, out, False, torch.device("cpu"), "auto", threads)


def _sizes(option: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} must be sizes such as 1024,1024, got {text!r}") from None


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Run folder to create (or continue, with --resume).")],
    data: Annotated[
        str,
        typer.Option(help=f"{', '.join(dataset_names())}, an .npz file, or a folder of idx files."),
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
    groups: Annotated[
        str | None, typer.Option(help="Class groups of a kernel: a number, or a range as 2:10.")
    ] = None,
    conv_objective: Annotated[str | None, typer.Option(help="Of the convolutions.")] = None,
    resize: Annotated[int | None, typer.Option(help="Images to this many pixels a side.")] = None,
    noise: Annotated[
        float | None, typer.Option(help="Standard deviation of noise on all pixels (0..1).")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
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
    normalize_input: Annotated[
        str | None, typer.Option(help="Row norm before every layer: none, unit, rms.")
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
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    data_root: DataRoot = None,
    threads: Threads = None,
    backend: Backend = "auto",
    device: Device = "auto",
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
        groups=groups,
        conv_objective=conv_objective,
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
        normalize_input=normalize_input,
        dropout=dropout,
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        shuffle=shuffle,
    )
    folder = RunFolder(out)
    if folder.holds_run() and not resume:
        raise ValueError(
            f"{out} already holds a run: continue it with --resume, or choose another --out"
        )
    if resume and not folder.holds_run():
        raise ValueError(f"{out} holds no run to continue: start one without --resume")
    where = _device(device)
    _train(config, load_data(config, data_root), out, resume, where, backend, threads)


def _loaded(run_dir: Path, device: str) -> LoadedRun:
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is not a folder: give the --out folder of a training run")
    return load_run(run_dir, _device(device))


@app.command(name="evaluate")
def evaluate_command(
    run_dir: RunDir,
    data: Annotated[str | None, typer.Option(help="Other data than the run's own.")] = None,
    data_root: DataRoot = None,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Print the test accuracy of every layer, from the checkpoint."""
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = _loaded(run_dir, device)
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
    dataset = dataset.to(_device(device))
    result = evaluate(loaded.net, dataset.test_x, dataset.test_y)
    typer.echo(f"{dataset.name}, {len(dataset.test_y):,} test samples, epoch {checkpoint.epoch}:")
    _print_accuracy(result.accuracy, result.vote_accuracy)


@app.command()
def predict(
    run_dir: RunDir,
    file: Annotated[Path, typer.Argument(help="Image, folder of images, idx, .npy or .npz file.")],
    device: Device = "auto",
) -> None:
    """Label samples: a line each with index, label, class name and score (cosine, or logit)."""
    loaded = _loaded(run_dir, device)
    names = loaded.checkpoint.class_names
    checkpoint = loaded.checkpoint
    inputs = read_inputs(file, checkpoint.sample_shape, train_dtype=checkpoint.sample_dtype)
    typer.echo("index\tlabel\tclass\tscore")
    start = 0
    for chunk in inputs.split(1000):
        with torch.no_grad():
            scores = loaded.net(prepare_inputs(chunk.to(_device(device))))
        best = scores.max(dim=1)
        for offset, (label, score) in enumerate(
            zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ):
            typer.echo(f"{start + offset}\t{label}\t{names[label]}\t{score:.4f}")
        start += len(chunk)


@app.command()
def bench(
    model: Annotated[
        bool,
        typer.Option("--model", help="Predict GPU times from the kernels' tiles; needs no GPU."),
    ] = False,
    gpu: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(GPUS)} (default: all).")
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"{', '.join(DTYPES)}.")] = "float32",
    launch_us: Annotated[
        float, typer.Option(min=0, help="Assumed overhead of every launch, microseconds.")
    ] = LAUNCH_US,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures here.")
    ] = None,
) -> None:
    """Compare a fused layer step with the published one in eager PyTorch, by the cost model."""
    if not model:
        raise ValueError(
            "the measured benchmarks run by `make bench`; --model prints the cost model"
        )
    gpus = list(GPUS.values()) if gpu is None else [find_gpu(gpu)]
    rows = model_steps(gpus, dtype, launch_us)
    typer.echo(
        "A model, not a measurement: one SPELA step (SGD, log loss) of each layer at batch 50, "
        f"{dtype}; ours / eager PyTorch's.\nTime of a launch = max(bytes / bandwidth, flops / peak) "
        f"+ {launch_us:g} us, an assumed overhead that decides most rows (--launch-us)."
    )
    typer.echo(format_table(rows))
    for row in gpus:
        typer.echo(f"{row.name}: {row.bandwidth:g} GB/s, {row.cache_mib} MiB cache. {row.source}")
    if json_file is not None:
        json_file.write_text(json.dumps(to_json(rows, gpus, dtype, launch_us), indent=2) + "\n")


@app.command()
def info(
    run_dir: Annotated[Path | None, typer.Argument(help="Folder of a run (optional).")] = None,
    data_root: DataRoot = None,
) -> None:
    """Show versions, back-ends and datasets here, or what a run folder's checkpoint is."""
    if run_dir is not None:
        loaded = _loaded(run_dir, "cpu")
        checkpoint = loaded.checkpoint
        typer.echo(
            f"checkpoint after {checkpoint.epoch} of {checkpoint.config.total_epochs} epochs"
        )
        typer.echo(f"input {checkpoint.sample_shape}, classes: {', '.join(checkpoint.class_names)}")
        for name, value in checkpoint.config.to_dict().items():
            typer.echo(f"  {name}: {value}")
        typer.echo(repr(loaded.net))
        return
    typer.echo(
        f"spela {spela.__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    typer.echo(f"triton: {'installed' if importlib.util.find_spec('triton') else 'not installed'}")
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    for name in devices:
        typer.echo(f"device {name}: back-ends {', '.join(available_backends(name))}")
    typer.echo(f"threads: {torch.get_num_threads()} of {os.cpu_count()} cores")
    typer.echo(f"data root: {data_root or default_data_root()}")
    for name in dataset_names():
        found = "here" if is_available(name, data_root) else "downloaded when first used"
        typer.echo(f"  {name}: {found}")


def main() -> None:
    """Run the command line; every foreseen error is one line on stderr and exit code 2."""
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.TyperException as error:
        _fail(error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        typer.echo(
            "\nstopped: continue a training run with the same command and --resume", err=True
        )
        sys.exit(130)
    except TrainingDivergedError as error:
        _fail(str(error))
    except (ValueError, TypeError, OSError) as error:
        _fail(str(error) or type(error).__name__)
    sys.exit(code or 0)


def _fail(message: str) -> None:
    typer.echo(f"spela: error: {' '.join(message.split())}", err=True)
    sys.exit(2)
