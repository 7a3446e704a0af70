"""A run of several processes: as `spela.experiments.run`, called by every one of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from spela.choices import PARALLEL
from spela.data import Dataset
from spela.distributed.data_parallel import DataParallelSequential
from spela.distributed.folder import SharedRunFolder
from spela.distributed.layer_parallel import LayerParallelSequential
from spela.distributed.ranks import Ranks
from spela.distributed.trainers import DataParallelTrainer, LayerParallelTrainer
from spela.experiments import build_optimizer, network_for
from spela.experiments.runs import checked_checkpoint
from spela.network import SpelaSequential
from spela.training import Listener, RunConfig

__all__ = ["run_parallel"]


def run_parallel(
    config: RunConfig,
    dataset: Dataset,
    out: str | Path,
    ranks: Ranks,
    parallel: str,
    *,
    resume: bool = False,
    extend: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Train a run in several processes into one folder, from the start or from its last checkpoint.

    The checkpoint is that of a run in one process, so a run may be resumed in another form or with
    another number of processes.

    Args:
        config: The run's settings, the same on every process.
        dataset: Its data, the same on every process.
        out: The run folder; rank 0 writes it, and every process reads it when resuming.
        ranks: The processes of the job.
        parallel: data (parts of each batch) or layers (parts of the network).
        resume: Continue the run in `out` instead of starting one.
        extend: When resuming, `config` may have more epochs; see `checked_checkpoint`.
        listener: Told of progress on rank 0, or None.

    Returns:
        The summary, on every process; rank 0 writes it to `out`/summary.json.

    Raises:
        ValueError: As `spela.experiments.run`; for a method that does not learn layer by layer; or for
            more processes than layers.
        TrainingDivergedError: If a loss becomes NaN or infinite.
        LostRankError: If another process ends before it is done.
    """
    if parallel not in PARALLEL:
        raise ValueError(f"unknown parallel {parallel!r}: use one of {', '.join(PARALLEL)}")
    folder = SharedRunFolder(out, ranks)
    net = network_for(config, dataset)
    if not isinstance(net, SpelaSequential):
        raise ValueError(f"--parallel trains SPELA networks only, not method {config.method!r}")
    trainer: DataParallelTrainer | LayerParallelTrainer
    if parallel == "data":
        joint = DataParallelSequential(net.to(ranks.device), ranks)
        optimizer = build_optimizer(config, joint)
        data = dataset.to(ranks.device)
        trainer = DataParallelTrainer(config, joint, optimizer, data, folder, listener)
    else:
        spread = LayerParallelSequential(net, ranks, dataset.sample_shape)
        optimizer = build_optimizer(config, spread)
        data = dataset if ranks.is_main else _without_inputs(dataset)
        data = data.to(ranks.device)
        trainer = LayerParallelTrainer(config, spread, optimizer, data, folder, listener)
    with folder.writing():
        if resume:
            trainer.resume(checked_checkpoint(folder, config, dataset, extend))
        else:
            trainer.start()
        return trainer.fit()


def _without_inputs(dataset: Dataset) -> Dataset:
    """The labels, and one sample that stands for all: inputs are read on rank 0 only."""
    one, train, test = dataset.train_x[:1].clone(), dataset.train_x, dataset.test_x
    return replace(dataset, train_x=one.expand_as(train), test_x=one.expand_as(test))
