"""The training loop in several processes: losses are summed, rank 0 writes; the rest is `Trainer`'s."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from spela.data import Dataset
from spela.distributed.data_parallel import DataParallelSequential
from spela.distributed.folder import SharedRunFolder
from spela.distributed.layer_parallel import LayerParallelSequential
from spela.distributed.ranks import Ranks
from spela.training import Checkpoint, Listener, RunConfig, Trainer
from spela.training.checkpoint import state_tensors

__all__ = ["DataParallelTrainer", "LayerParallelTrainer"]


class _ParallelTrainer(Trainer):
    """Sums the losses over the processes; rank 0 alone writes and is listened to."""

    form: str
    kind: type[nn.Module]

    def __init__(
        self,
        config: RunConfig,
        net: DataParallelSequential | LayerParallelSequential,
        optimizer: torch.optim.Optimizer,
        dataset: Dataset,
        folder: SharedRunFolder,
        listener: Listener | None = None,
    ) -> None:
        if not isinstance(net, self.kind):
            raise TypeError(f"net must be a {self.kind.__name__}, got {type(net).__name__}")
        self.ranks: Ranks = net.ranks
        listener = listener if self.ranks.is_main else None
        # Processes wait for each other within a step, which no graph captures.
        super().__init__(config, net, optimizer, dataset, folder, listener, graph="off")

    def _finite_means(self, total: Tensor, steps: int, epoch: int) -> list[float]:
        return super()._finite_means(self.ranks.sum(total.clone()), steps, epoch)

    def _checkpoint(self) -> None:
        if self.ranks.is_main:
            super()._checkpoint()

    def summarise(self) -> dict[str, Any]:
        """The run's result, with the form and the number of processes."""
        return {**super().summarise(), "parallel": self.form, "ranks": self.ranks.size}


class DataParallelTrainer(_ParallelTrainer):
    """A Trainer of a `DataParallelSequential`; arguments as Trainer's, on every process."""

    form = "data"
    kind = DataParallelSequential


class LayerParallelTrainer(_ParallelTrainer):
    """A Trainer of a `LayerParallelSequential`; arguments as Trainer's, on every process."""

    form = "layers"
    kind = LayerParallelSequential
    net: LayerParallelSequential

    def run_epoch(self, epoch: int) -> dict[str, Any]:
        """As Trainer, with the sizes of the epoch's batches announced."""
        full, rest = divmod(len(self.dataset.train_y), self.config.batch_size)
        self.net.expect([self.config.batch_size] * full + [rest] * (rest > 0))
        return super().run_epoch(epoch)

    def resume(self, checkpoint: Checkpoint) -> None:
        """As Trainer; of the checkpoint's tensors this process keeps its own."""
        with warnings.catch_warnings():
            # torch warns of every tensor that it does not copy to the meta device.
            warnings.filterwarnings("ignore", message=".*meta parameter.*")
            super().resume(checkpoint)
        for parameter in [p for p in self.optimizer.state if p.is_meta]:
            del self.optimizer.state[parameter]

    def _checkpoint(self) -> None:
        own = state_tensors(self.module, self.optimizer)
        self._gathered = self.ranks.gather({k: v for k, v in own.items() if not v.is_meta})
        super()._checkpoint()

    def _run_tensors(self) -> dict[str, Tensor]:
        return self._gathered

    def _weight_norms(self) -> list[float]:
        norms = super()._weight_norms()
        return self.ranks.sum(torch.tensor(norms, dtype=torch.float64)).tolist()
