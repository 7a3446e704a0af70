"""Runs as files: start one, resume one, load a trained one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from spela.data import (
    Dataset,
    add_label_noise,
    add_noise,
    load_dataset,
    resize_images,
    split_anew,
)
from spela.experiments.models import build_network, build_optimizer, least_weights, network_for
from spela.experiments.rivals import Network
from spela.training import (
    Checkpoint,
    Listener,
    RunConfig,
    RunFolder,
    Trainer,
    read_checkpoint,
    restore,
)
from spela.training.evidence import Evidence, check_weights
from spela_kernels.precision import without_inference

__all__ = ["LoadedRun", "checked_checkpoint", "load_data", "load_other_data", "load_run", "run"]


@dataclass(frozen=True)
class LoadedRun:
    """A trained network, what it was trained on, and the records of its epochs."""

    net: Network
    checkpoint: Checkpoint
    records: list[dict[str, Any]] = field(default_factory=list)


def load_data(config: RunConfig, data_root: Path | None = None, name: str | None = None) -> Dataset:
    """The data of a run: split anew, resized, with noise in pixels and labels, as its settings say.

    Args:
        config: The run's settings.
        data_root: The folder for datasets; None for the default one.
        name: The same data under another name, as of a file that was moved.

    Returns:
        The dataset, on the CPU.

    Raises:
        ValueError: As `load_dataset`, or if there is nothing to resize.
    """
    dataset = load_dataset(config.data if name is None else name, data_root)
    if config.test_share > 0:
        dataset = split_anew(dataset, config.test_share, config.seed)
    return _changed(dataset, config)


def load_other_data(config: RunConfig, name: str, data_root: Path | None = None) -> Dataset:
    """Data that a run did not learn from, with pixels and labels changed as its own were.

    Args:
        config: The run's settings.
        name: Of the dataset or file.
        data_root: The folder for datasets; None for the default one.

    Returns:
        The dataset, on the CPU; all samples of a file with x and y alone are test samples.

    Raises:
        ValueError: As `load_data`.
    """
    return _changed(load_dataset(name, data_root, split_seed=None), config)


def _changed(dataset: Dataset, config: RunConfig) -> Dataset:
    if config.resize > 0:
        dataset = resize_images(dataset, config.resize)
    if config.noise > 0:
        dataset = add_noise(dataset, config.noise, config.seed)
    if config.label_noise > 0:
        dataset = add_label_noise(dataset, config.label_noise, config.seed)
    return dataset


@without_inference
def run(
    config: RunConfig,
    dataset: Dataset,
    out: str | Path,
    *,
    resume: bool = False,
    extend: bool = False,
    device: torch.device | str = "cpu",
    listener: Listener | None = None,
    graph: str = "auto",
) -> dict[str, Any]:
    """Train a run into a folder, from the start or from its last checkpoint.

    Args:
        config: The run's settings; when resuming they must be those it was started with.
        dataset: Its data.
        out: The run folder, which no other process may be writing to.
        resume: Continue the run in `out` instead of starting one.
        extend: When resuming, `config` may have more epochs; see `checked_checkpoint`.
        device: Where to train.
        listener: Told of progress, or None.
        graph: As for `Trainer`: auto, on or off. No setting of the run, whose result is the same: a run may
            be resumed with another one.

    Returns:
        The summary, also in `out`/summary.json.

    Raises:
        ValueError: If `out` already holds a run (or none, when resuming), settings differ, another process is
            writing to it, or `graph` is unknown or cannot be on.
        TrainingDivergedError: If a loss becomes NaN or infinite.
    """
    folder = RunFolder(out)
    with folder.writing():
        checkpoint = checked_checkpoint(folder, config, dataset, extend) if resume else None
        dataset = dataset.to(device)
        net = network_for(config, dataset).to(device)
        optimizer = build_optimizer(config, net)
        trainer = Trainer(config, net, optimizer, dataset, folder, listener, graph)
        if checkpoint is None:
            trainer.start()
        else:
            trainer.resume(checkpoint)
        return trainer.fit()


def checked_checkpoint(
    folder: RunFolder, config: RunConfig, dataset: Dataset, extend: bool = False
) -> Checkpoint:
    """The checkpoint to resume from.

    Args:
        folder: Of the run.
        config: The settings asked for.
        dataset: The data asked for.
        extend: They may have more epochs (of a head on frozen convolutions, once it learns, more
            head_epochs), as long as each epoch done keeps its part in the longer run.

    Raises:
        ValueError: If there is no readable checkpoint, the run's files disagree, or it was started with
            other settings or data (the same samples in a file that was moved are the same data).
    """
    evidence, checkpoint = read_checkpoint(RunFolder(folder.path))
    if checkpoint.data_digest == dataset.digest:  # its file may have been moved
        config = replace(config, data=checkpoint.config.data)
    saved, asked = asdict(checkpoint.config), asdict(config)
    free = ("epochs", "head_epochs") if extend and _only_adds_epochs(config, checkpoint) else ()
    changed = [
        f"{k} {saved[k]!r} -> {asked[k]!r}" for k in saved if saved[k] != asked[k] and k not in free
    ]
    if changed:
        raise ValueError(
            f"{folder.path} was started with other settings ({', '.join(changed)}): resume with the same "
            "ones (--epochs, or --head-epochs where a head learns alone, may be larger), or start a new "
            "run in another --out"
        )
    checkpoint.check_data(
        dataset, str(folder.path), "bring the data back, or start a new run in another --out"
    )
    _network(checkpoint, evidence, folder)
    return checkpoint


def _only_adds_epochs(config: RunConfig, checkpoint: Checkpoint) -> bool:
    """Whether the epochs of settings are a checkpoint's and some that come after those it has done."""
    saved = checkpoint.config
    return (
        config.epochs >= saved.epochs
        and config.head_epochs >= saved.head_epochs
        and (config.head_epochs > 0) == (saved.head_epochs > 0)
        and (config.epochs == saved.epochs or checkpoint.epoch <= saved.epochs)
    )


def _check_sizes(checkpoint: Checkpoint, file: Path) -> None:
    """Refuse settings of a larger network than the file holds, before memory is taken for it."""
    held = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    needed = least_weights(checkpoint.config, checkpoint.sample_shape)
    if needed > held:
        raise ValueError(
            f"{file} is damaged: its settings describe a network of at least {needed:,} weights, "
            f"its tensors hold {held:,} numbers"
        )


@without_inference
def load_run(path: str | Path, device: torch.device | str = "cpu") -> LoadedRun:
    """Read a run's network from its checkpoint, in eval mode.

    Args:
        path: The run folder.
        device: Where to put the network.

    Returns:
        A `LoadedRun`.

    Raises:
        ValueError: If the folder holds no readable checkpoint, or its files disagree.
    """
    folder = RunFolder(path)
    evidence, checkpoint = read_checkpoint(folder)
    net = _network(checkpoint, evidence, folder)
    return LoadedRun(net.to(device).eval(), checkpoint, evidence.records)


def _network(checkpoint: Checkpoint, evidence: Evidence, folder: RunFolder) -> Network:
    """The network of a checkpoint, whose weights are those that the run's other files speak of."""
    _check_sizes(checkpoint, folder.checkpoint)
    net = build_network(checkpoint.config, checkpoint.sample_shape, len(checkpoint.class_names))
    restore(checkpoint, net)
    check_weights(folder, evidence, net)
    return net
