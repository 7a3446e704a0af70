"""The training loop: fit -> epoch -> step, with records and checkpoints; it knows networks by protocol."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from spela.choices import GRAPHS
from spela.data import Batches, Dataset, epoch_generator
from spela.data.augment import crop_and_flip
from spela.graphed import GraphedStep, can_capture
from spela.layers.chain import steps_a_call
from spela.layers.steps import set_rates
from spela.network import SpelaSequential
from spela.process import seeded
from spela.process.machine import describe_machine
from spela.training.checkpoint import Checkpoint, restore, save_checkpoint, state_tensors
from spela.training.config import RunConfig
from spela.training.diagnostics import (
    NETWORK_PROBE_SAMPLES,
    PROBE_SAMPLES,
    Probe,
    diagnose,
)
from spela.training.evaluate import (
    LayerwiseClassifier,
    evaluate,
)
from spela.training.evidence import read_evidence, weight_norms
from spela.training.frozen import Learner, behind_frozen, freeze
from spela.training.memory import peak_step_bytes
from spela.training.records import RunFolder
from spela.training.repeatable import repeatable_convolutions
from spela.training.schedule import learning_rate
from spela.training.summary import summarise

__all__ = ["Listener", "Trainer", "TrainingDivergedError", "check_graph_mode"]

# Steps between looks at the losses: each look waits for the device, and for the other processes of a job,
# which count the same steps. The first steps are looked at more often: they may take seconds each.
LOG_EVERY = 50
EARLY_LOOKS = (1, 2, 4, 8, 16, 32)
# Between looks a listener is told of the steps alone, so often.
TELL_EVERY_S = 0.5
# The step whose memory is measured, in the first epoch: the first one creates the optimizer's state.
MEASURED_STEP = 1


def check_graph_mode(graph: str, device: torch.device) -> None:
    """Refuse a mode that is unknown, or steps as graphs on a device that has none.

    Raises:
        ValueError: Saying what to do.
    """
    if graph not in GRAPHS:
        raise ValueError(f"unknown graph {graph!r}: use one of {', '.join(GRAPHS)}")
    if graph == "on" and not can_capture(device):
        raise ValueError(f"graph on needs a GPU, the run is on {device}: use auto or off")


class TrainingDivergedError(ValueError):
    """A layer's loss became NaN or infinite."""


class Listener(Protocol):
    """What a caller may watch; the command line draws its progress bar with it."""

    def on_epoch_start(self, epoch: int, epochs: int, steps: int) -> None:
        """Before an epoch; epochs count from 1."""

    def on_progress(self, steps_done: int, losses: list[float]) -> None:
        """While steps are done, with the mean loss of each layer in this epoch at the last look at it."""

    def on_epoch_end(self, record: dict[str, Any]) -> None:
        """After an epoch, with the line written to metrics.jsonl."""


class Trainer:
    """Trains one network on one dataset as a `RunConfig` says, into a run folder.

    Randomness inside an epoch is seeded by (seed, epoch), and the learning rate is a function of the
    position, so a run resumed from the checkpoint of any epoch ends in the same bits; on a GPU, of the
    same kind, for which `fit` keeps convolutions to cuDNN's deterministic algorithms.

    Args:
        config: The run's settings.
        net: Network with `local_step` and `layer_scores`; an nn.Module.
        optimizer: Built from the network's parameters.
        dataset: Data, on the network's device.
        folder: Where config, records and checkpoints go.
        listener: Told of progress, or None.
        graph: Whether a step is one CUDA graph, with the same result: auto (on a GPU, where it can be
            captured; a warning says where not), on (else the run fails) or off.

    Raises:
        ValueError: If `graph` is unknown or on without a GPU, if images are to be augmented and samples are
            none, or a last batch of one sample meets a similarity loss.
        TypeError: If `net` is no nn.Module.
        TrainingDivergedError: From `fit`, naming the layer, when a loss is no longer finite.
        OSError: From `fit`, when the folder cannot be written; the last checkpoint stays whole.
    """

    def __init__(
        self,
        config: RunConfig,
        net: LayerwiseClassifier,
        optimizer: torch.optim.Optimizer,
        dataset: Dataset,
        folder: RunFolder,
        listener: Listener | None = None,
        graph: str = "auto",
    ) -> None:
        if not isinstance(net, nn.Module):
            raise TypeError(f"`net` must be an nn.Module, got {type(net).__name__}")
        check_graph_mode(graph, dataset.train_x.device)
        if (
            config.similarity > 0
            and len(dataset.train_y) % config.batch_size == 1 % config.batch_size
        ):
            raise ValueError(
                f"the last batch of {len(dataset.train_y):,} samples in batches of {config.batch_size} "
                "is one sample, which a similarity loss compares with nothing: use another --batch-size"
            )
        if config.augment and dataset.train_x.dim() != 4:
            raise ValueError(
                f"augment crops and mirrors images, {dataset.name} has samples of shape "
                f"{dataset.sample_shape}: leave it out"
            )
        self.config = config
        self.net: LayerwiseClassifier = net
        self.module: nn.Module = net
        self.optimizer = optimizer
        self.dataset = dataset
        self.folder = folder
        self.listener = listener
        self.graph = graph
        self.epochs_done = 0
        self._broken_off = False
        self.extended_at: tuple[int, ...] = ()
        self.made_by: tuple[dict[str, Any], ...] = ()
        self._whole = Learner(net, dataset.train_x, dataset.test_x)
        self._head: Learner | None = None
        self._learn(self._whole)

    def start(self) -> None:
        """Create the run folder and the checkpoint of the untrained network."""
        self.folder.create(self.config.to_dict())
        self._sign()
        self._checkpoint()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same run, to more epochs where the config has more.

        The learning rate is that of the position in the longer run, so a schedule that ends with the run
        (cosine) jumps back up; checkpoints and summary say after which epoch.

        Raises:
            ValueError: If the records of some of its epochs are lost.
        """
        restore(checkpoint, self.module, self.optimizer)
        # The name that the data was first read by, wherever its file lies now.
        self.config = replace(self.config, data=checkpoint.config.data)
        self.epochs_done = checkpoint.epoch
        self._broken_off = False
        self.extended_at = checkpoint.extended_at
        # Files of older versions say no more.
        self.made_by = checkpoint.made_by or ({"torch": checkpoint.torch_version},)
        self.folder.keep_metrics(self.epochs_done)
        if checkpoint.config != self.config:
            self.extended_at += (self.epochs_done,)
            # In this order, so that a summary never stands beside another run's checkpoint.
            self.folder.remove_summary()
            self._checkpoint()
        self.folder.write_json(self.folder.config, self.config.to_dict())

    @repeatable_convolutions()
    def fit(self) -> dict[str, Any]:
        """Train the epochs that are left, evaluate, and write summary.json.

        Returns:
            The summary; of a run that was finished before, the one that is there.

        Raises:
            ValueError: If an earlier call was broken off within an epoch, as by Ctrl-C: its weights are no
                epoch's, until the run is resumed.
        """
        if self._broken_off:
            raise ValueError(
                "training was broken off within an epoch, and the weights are no epoch's: `resume` from the "
                "run's checkpoint"
            )
        if self.epochs_done == self.config.total_epochs and self.folder.holds(self.folder.summary):
            kept = read_evidence(self.folder).summary
            if kept is not None:
                return kept
        while self.epochs_done < self.config.total_epochs:
            self._broken_off = True
            record = self.run_epoch(self.epochs_done)
            self.epochs_done += 1
            # Record first: a record beyond the checkpoint is dropped on resume, a missing one is lost.
            self.folder.append_metrics(record)
            self._sign()
            self._checkpoint()
            self._broken_off = False
            if self.listener is not None:
                self.listener.on_epoch_end(record)
        summary = self.summarise()
        self.folder.write_json(self.folder.summary, summary)
        return summary

    def run_epoch(self, epoch: int) -> dict[str, Any]:
        """Train one epoch (counted from 0) and evaluate; returns the record.

        Dropout draws from torch's default generators, which the caller gets back as they were.
        """
        seed = epoch_generator(self.config.seed, epoch).initial_seed()
        with seeded(seed, self.dataset.train_x.device), self._as_evaluated():
            return self._run_epoch(epoch)

    def _run_epoch(self, epoch: int) -> dict[str, Any]:
        config, data = self.config, self.dataset
        steps = -(-len(data.train_y) // config.batch_size)
        if self.listener is not None:
            self.listener.on_epoch_start(epoch + 1, config.total_epochs, steps)
        started, aside = time.perf_counter(), 0.0
        self.net.train(True)
        learner = self._learner(epoch)
        if learner is not self.learner:
            self._learn(learner)
        calls = self._steps_a_call(epoch)
        batches = Batches(
            learner.train_x,
            data.train_y,
            calls * config.batch_size,
            shuffle=config.shuffle,
            generator=epoch_generator(config.seed, epoch),
            augment=self._augmentation(epoch),
        )
        measured = min(MEASURED_STEP, steps - 1) if epoch == 0 else None
        memory: dict[str, int] = {}
        total: Tensor | None = None
        means: list[float] = []
        told = started
        done = 0
        for x, target in batches:
            taken = range(done, min(done + calls, steps))
            rates = [learning_rate(config, epoch, step, steps) for step in taken]
            self._set_learning_rate(rates[0])
            if len(taken) > 1:
                losses = self._train_steps(x, target, rates).double().sum(dim=0)
            elif done == measured:
                before = time.perf_counter()
                losses, memory["peak_memory_bytes"] = peak_step_bytes(
                    partial(self.train_step, x, target, graphed=False), self.optimizer, x.device
                )
                aside = time.perf_counter() - before
            else:
                losses = self.train_step(x, target)
            total = losses.double() if total is None else total + losses
            done = taken.stop
            look = done % LOG_EVERY == 0 or done == steps or done in EARLY_LOOKS
            if look:
                means = self._finite_means(total, done, epoch)
            if self.listener is not None and (look or time.perf_counter() - told > TELL_EVERY_S):
                self.listener.on_progress(done, means)
                told = time.perf_counter()
        seconds = time.perf_counter() - started - aside
        if config.binarise == "last":
            self._sign_last_layer()
        result = evaluate(learner.net, learner.test_x, data.test_y)
        return {
            "epoch": epoch + 1,
            "train_loss": means,
            "test_accuracy": result.accuracy,
            "vote_accuracy": result.vote_accuracy,
            **({} if result.top5_accuracy is None else {"top5_accuracy": result.top5_accuracy}),
            "weight_norm": self._weight_norms(),
            "learning_rate": learning_rate(config, epoch, 0, steps),
            "seconds": seconds,
            **memory,
            **self._diagnostics(),
        }

    def train_step(self, x: Tensor, target: Tensor, graphed: bool = True) -> Tensor:
        """One update on one batch, as a graph where the trainer has one; losses (L,) stay on the device."""
        with self._precision():
            if graphed and self.graphed is not None:
                return self.graphed(x, target)
            return self.learner.net.local_step(x, target, self.optimizer)

    def _train_steps(self, x: Tensor, target: Tensor, rates: list[float]) -> Tensor:
        """Updates on several batches in one call; losses (steps, L)."""
        net = self.learner.net
        assert isinstance(net, SpelaSequential)
        return net.local_steps(x, target, self.optimizer, self.config.batch_size, rates)

    def _steps_a_call(self, epoch: int) -> int:
        """How many steps the network takes at once: more than one where they are a compiled call on the CPU.

        Of the first epoch a step's memory is measured, and what is drawn for images is drawn batch by batch.
        """
        config, net = self.config, self.learner.net
        alone = epoch == 0 or config.augment or config.precision != "fp32"
        if alone or type(net) is not SpelaSequential or self.dataset.train_x.device.type != "cpu":
            return 1
        # A divisor of what lies between two looks at the losses.
        most = steps_a_call(net, config.batch_size)
        return max(count for count in (1, 2, 5, 10, 25, LOG_EVERY) if count <= most)

    def _precision(self) -> torch.autocast:
        """That of the run's steps, whatever the caller has set."""
        device, bf16 = self.dataset.train_x.device, self.config.precision == "bf16"
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    def _as_evaluated(self) -> torch.autocast:
        """The network's own dtype, whatever the caller has set."""
        return torch.autocast(self.dataset.train_x.device.type, enabled=False)

    def summarise(self) -> dict[str, Any]:
        """The run's result from its records."""
        more: dict[str, Any] = {"made_by": list(self.made_by)}
        if self.extended_at:
            more["extended_at"] = list(self.extended_at)
        if self.graphed is not None and self.graphed.captured:
            more["graph"] = True
        records = self.folder.read_metrics()
        with self._as_evaluated():
            return summarise(self.config, records, self.module, self.dataset, **more)

    def _diagnostics(self) -> dict[str, Any]:
        if not self.config.diagnostics:
            return {}
        most = NETWORK_PROBE_SAMPLES if self.config.network else PROBE_SAMPLES
        rows = diagnose(self.module, Probe.of(self.dataset, most))
        return {"diagnostics": [asdict(row) for row in rows]}

    def _augmentation(self, epoch: int) -> Callable[[Tensor], Tensor] | None:
        if not self.config.augment:
            return None
        return partial(crop_and_flip, generator=epoch_generator(self.config.seed, epoch, 1))

    def _learner(self, epoch: int) -> Learner:
        """What learns in this epoch: the network, or its head alone on frozen convolutions."""
        config, data = self.config, self.dataset
        if config.head_epochs > 0:
            freeze(self.module, len(config.channels), epoch >= config.epochs)
        # What an epoch draws anew goes through the convolutions anew; processes share them.
        drawn = config.augment or config.input_dropout > 0
        if epoch < config.epochs or drawn or type(self.module) is not SpelaSequential:
            return self._whole
        if self._head is None:
            precision = self._precision()
            head = behind_frozen(self.module, data, config.batch_size, self.folder.path, precision)
            self._head = head or self._whole
        return self._head

    def _learn(self, learner: Learner) -> None:
        """From here on, steps are this learner's."""
        self.learner = learner
        self.graphed: GraphedStep | None = None
        if self.graph != "off":
            self.graphed = GraphedStep(learner.net, self.optimizer, required=self.graph == "on")

    @torch.no_grad()
    def _sign_last_layer(self) -> None:
        """The authors' ablation: after an epoch the last layer's weights are their signs, and learn on."""
        weight = [m for m in self.module.modules() if isinstance(m, nn.Linear)][-1].weight
        weight.copy_(torch.where(weight < 0, -1.0, 1.0))

    def _set_learning_rate(self, lr: float) -> None:
        if can_capture(self.dataset.train_x.device):
            # What a graph reads from float32: torch's fused AdamW would else take 64 bits in other steps.
            lr = float(np.float32(lr))
        set_rates(self.optimizer, lr)

    def _finite_means(self, total: Tensor, steps: int, epoch: int) -> list[float]:
        means = (total / steps).tolist()
        for layer, mean in enumerate(means, start=1):
            if mean - mean != 0:
                raise TrainingDivergedError(
                    f"the loss of layer {layer} became {mean} in epoch {epoch + 1}: start again with a "
                    "lower --lr (or --weight-decay) in another --out"
                )
        return means

    def _weight_norms(self) -> list[float]:
        return weight_norms(self.module)

    def _sign(self) -> None:
        """Note what trains here, unless the epoch before was made with the same."""
        here = {**describe_machine(), "device": str(self.dataset.train_x.device)}
        if self.made_by[-1:] != (here,):
            self.made_by += (here,)

    def _checkpoint(self) -> None:
        now = Checkpoint(
            config=self.config,
            epoch=self.epochs_done,
            sample_shape=self.dataset.sample_shape,
            sample_dtype=self.dataset.train_x.dtype,
            class_names=self.dataset.class_names,
            tensors=self._run_tensors(),
            extended_at=self.extended_at,
            data_digest=self.dataset.digest,
            made_by=self.made_by,
        )
        save_checkpoint(self.folder.checkpoint, now)

    def _run_tensors(self) -> dict[str, Tensor]:
        return state_tensors(self.module, self.optimizer)
