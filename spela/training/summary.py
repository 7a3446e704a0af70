"""A run's summary: what its records, its network and its machine come to."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import nn

from spela.data import Dataset
from spela.training.config import RunConfig
from spela.training.evaluate import batch_statistics_accuracy
from spela_kernels import select_backend
from spela_kernels.contracts import Settings

__all__ = ["summarise"]


def summarise(
    config: RunConfig,
    records: list[dict[str, Any]],
    module: nn.Module,
    dataset: Dataset,
    **more: Any,
) -> dict[str, Any]:
    """The run's result.

    Args:
        config: Its settings.
        records: Of its epochs, at least one.
        module: The trained network.
        dataset: On the network's device.
        **more: What only its trainer knows.

    Returns:
        JSON values.
    """
    last = records[-1]
    # Epochs of a head on frozen convolutions are far shorter: they have a median of their own.
    seconds = [record["seconds"] for record in records]
    body, head = seconds[: config.epochs], seconds[config.epochs :]
    device = dataset.train_x.device
    own = batch_statistics_accuracy(module, dataset.test_x, dataset.test_y, config.batch_size)
    return {
        "test_accuracy": last["test_accuracy"],
        **({} if own is None else {"test_accuracy_batch_statistics": own}),
        "vote_accuracy": last["vote_accuracy"],
        **({"top5_accuracy": last["top5_accuracy"]} if "top5_accuracy" in last else {}),
        "train_loss": last["train_loss"],
        "weight_norm": last["weight_norm"],
        "epochs": last["epoch"],
        "seconds_per_epoch": statistics.median(body),
        **({"seconds_per_head_epoch": statistics.median(head)} if head else {}),
        # Records of another version of this library may lack it.
        "peak_memory_bytes": records[0].get("peak_memory_bytes"),
        "backend": _backend(config, device),
        "seed": config.seed,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in module.parameters()),
        "dataset": dataset.name,
        "config": config.to_dict(),
        **more,
    }


def _backend(config: RunConfig, device: torch.device) -> str:
    """The one that ran the linear layers, or where there are none the convolutions."""
    if config.method != "spela":
        return "torch"
    objective = config.conv_objective if config.channels and not config.layers else config.objective
    return select_backend(device, Settings(config.activation, objective=objective))
