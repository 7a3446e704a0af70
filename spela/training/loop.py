"""The training loop: fit -> epoch -> step, with records and checkpoints; it knows networks by protocol."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spela.data import Batches, Dataset, epoch_generator
from spela.data.augment import crop_and_flip
from spela.layers import LocalLayer
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
    batch_statistics_accuracy,
    evaluate,
)
from spela.training.evidence import weight_norms
from spela.training.memory import peak_step_bytes
from spela.training.records import RunFolder
from spela.training.schedule import learning_rate
from spela_kernels import select_backend
from spela_kernels.contracts import Settings

__all__ = ["Listener", "Trainer", "TrainingDivergedError"]

# Steps between looks at the losses: each look waits for the device, and for the other processes of a job,
# which count the same steps. The first steps are looked at more often: they may take seconds each.
LOG_EVERY = 50
EARLY_LOOKS = (1, 2, 4, 8, 16, 32)
# Between looks a listener is told of the steps alone, so often.
TELL_EVERY_S = 0.5
# The step whose memory is measured, in the first epoch: the first one creates the optimizer's state.
MEASURED_STEP = 1


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
    position, so a run resumed from the checkpoint of any epoch ends in the same bits.

    Args:
        config: The run's settings.
        net: Network with `local_step` and `layer_scores`; an nn.Module.
        optimizer: Built from the network's parameters.
        dataset: Data, on the network's device.
        folder: Where config, records and checkpoints go.
        listener: Told of progress, or None.

    Raises:
        ValueError: If images are to be augmented and samples are none, or a last batch of one sample meets a
            similarity loss.
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
    ) -> None:
        if not isinstance(net, nn.Module):
            raise TypeError(f"net must be an nn.Module, got {type(net).__name__}")
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
        self.epochs_done = 0
        self.extended_at: tuple[int, ...] = ()

    def start(self) -> None:
        """Create the run folder and the checkpoint of the untrained network."""
        self.folder.create(self.config.to_dict())
        self._checkpoint()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same run, to more epochs where the config has more.

        The learning rate is that of the position in the longer run, so a schedule that ends with the run
        (cosine) jumps back up; checkpoints and summary say after which epoch.

        Raises:
            ValueError: If the records of some of its epochs are lost.
        """
        restore(checkpoint, self.module, self.optimizer)
        self.epochs_done = checkpoint.epoch
        self.extended_at = checkpoint.extended_at
        self.folder.keep_metrics(self.epochs_done)
        if checkpoint.config != self.config:
            self.extended_at += (self.epochs_done,)
            # In this order, so that a summary never stands beside another run's checkpoint.
            self.folder.remove_summary()
            self._checkpoint()
        self.folder.write_json(self.folder.config, self.config.to_dict())

    def fit(self) -> dict[str, Any]:
        """Train the epochs that are left, evaluate, and write summary.json.

        Returns:
            The summary.
        """
        while self.epochs_done < self.config.total_epochs:
            record = self.run_epoch(self.epochs_done)
            self.epochs_done += 1
            # Record first: a record beyond the checkpoint is dropped on resume, a missing one is lost.
            self.folder.append_metrics(record)
            self._checkpoint()
            if self.listener is not None:
                self.listener.on_epoch_end(record)
        summary = self.summarise()
        self.folder.write_json(self.folder.summary, summary)
        return summary

    def run_epoch(self, epoch: int) -> dict[str, Any]:
        """Train one epoch (counted from 0) and evaluate; returns the record."""
        config, data = self.config, self.dataset
        generator = epoch_generator(config.seed, epoch)
        torch.manual_seed(generator.initial_seed())  # dropout draws from torch's default generator
        batches = Batches(
            data.train_x,
            data.train_y,
            config.batch_size,
            shuffle=config.shuffle,
            generator=generator,
            augment=self._augmentation(epoch),
        )
        if self.listener is not None:
            self.listener.on_epoch_start(epoch + 1, config.total_epochs, len(batches))
        self.net.train(True)
        self._freeze(epoch)
        measured = min(MEASURED_STEP, len(batches) - 1) if epoch == 0 else None
        memory: dict[str, int] = {}
        started, aside = time.perf_counter(), 0.0
        total: Tensor | None = None
        means: list[float] = []
        told = started
        for step, (x, target) in enumerate(batches):
            self._set_learning_rate(learning_rate(config, epoch, step, len(batches)))
            if step == measured:
                before = time.perf_counter()
                losses, memory["peak_memory_bytes"] = peak_step_bytes(
                    partial(self.train_step, x, target), self.optimizer, x.device
                )
                aside = time.perf_counter() - before
            else:
                losses = self.train_step(x, target)
            total = losses.double() if total is None else total + losses
            done = step + 1
            look = done % LOG_EVERY == 0 or done == len(batches) or done in EARLY_LOOKS
            if look:
                means = self._finite_means(total, done, epoch)
            if self.listener is not None and (look or time.perf_counter() - told > TELL_EVERY_S):
                self.listener.on_progress(done, means)
                told = time.perf_counter()
        seconds = time.perf_counter() - started - aside
        if config.binarise == "last":
            self._sign_last_layer()
        result = evaluate(self.net, data.test_x, data.test_y)
        return {
            "epoch": epoch + 1,
            "train_loss": means,
            "test_accuracy": result.accuracy,
            "vote_accuracy": result.vote_accuracy,
            **({} if result.top5_accuracy is None else {"top5_accuracy": result.top5_accuracy}),
            "weight_norm": self._weight_norms(),
            "learning_rate": learning_rate(config, epoch, 0, len(batches)),
            "seconds": seconds,
            **memory,
            **self._diagnostics(),
        }

    def train_step(self, x: Tensor, target: Tensor) -> Tensor:
        """One update on one batch; losses (L,) stay on the device."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self.net.local_step(x, target, self.optimizer)

    def summarise(self) -> dict[str, Any]:
        """The run's result from its records."""
        records = self.folder.read_metrics()
        last = records[-1]
        # Epochs of a head on frozen convolutions are far shorter: they have a median of their own.
        seconds = [record["seconds"] for record in records]
        body, head = seconds[: self.config.epochs], seconds[self.config.epochs :]
        data = self.dataset
        device = data.train_x.device
        own = batch_statistics_accuracy(
            self.module, data.test_x, data.test_y, self.config.batch_size
        )
        return {
            "test_accuracy": last["test_accuracy"],
            **({} if own is None else {"test_accuracy_batch_statistics": own}),
            "vote_accuracy": last["vote_accuracy"],
            **({"top5_accuracy": last["top5_accuracy"]} if "top5_accuracy" in last else {}),
            "train_loss": last["train_loss"],
            "weight_norm": last["weight_norm"],
            "epochs": last["epoch"],
            **({"extended_at": list(self.extended_at)} if self.extended_at else {}),
            "seconds_per_epoch": statistics.median(body),
            **({"seconds_per_head_epoch": statistics.median(head)} if head else {}),
            # Records of another version of this library may lack it.
            "peak_memory_bytes": records[0].get("peak_memory_bytes"),
            "backend": self._backend(device),
            "seed": self.config.seed,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "dataset": self.dataset.name,
            "config": self.config.to_dict(),
        }

    def _backend(self, device: torch.device) -> str:
        """The one that ran the linear layers, or where there are none the convolutions."""
        config = self.config
        if config.method != "spela":
            return "torch"
        objective = (
            config.conv_objective if config.channels and not config.layers else config.objective
        )
        return select_backend(device, Settings(config.activation, objective=objective))

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

    def _freeze(self, epoch: int) -> None:
        """With epochs for the head alone: freeze it before them, and the convolutions in them."""
        if self.config.head_epochs == 0:
            return
        layers = [m for m in self.module.modules() if isinstance(m, LocalLayer)]
        for index, layer in enumerate(layers):
            is_head = index >= len(self.config.channels)
            learns = is_head == (epoch >= self.config.epochs)
            layer.requires_grad_(learns)
            layer.train(learns)

    @torch.no_grad()
    def _sign_last_layer(self) -> None:
        """The authors' ablation: after an epoch the last layer's weights are their signs, and learn on."""
        weight = [m for m in self.module.modules() if isinstance(m, nn.Linear)][-1].weight
        weight.copy_(torch.where(weight < 0, -1.0, 1.0))

    def _set_learning_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _finite_means(self, total: Tensor, steps: int, epoch: int) -> list[float]:
        means = (total / steps).tolist()
        for layer, mean in enumerate(means, start=1):
            if mean - mean != 0:
                raise TrainingDivergedError(
                    f"the loss of layer {layer} became {mean} in epoch {epoch + 1}: lower --lr "
                    "(the last checkpoint is from before this epoch)"
                )
        return means

    def _weight_norms(self) -> list[float]:
        return weight_norms(self.module)

    def _checkpoint(self) -> None:
        save_checkpoint(
            self.folder.checkpoint,
            self.module,
            self.optimizer,
            self.config,
            self.epochs_done,
            self.dataset.sample_shape,
            self.dataset.train_x.dtype,
            self.dataset.class_names,
            self._run_tensors(),
            self.extended_at,
        )

    def _run_tensors(self) -> dict[str, Tensor]:
        return state_tensors(self.module, self.optimizer)
