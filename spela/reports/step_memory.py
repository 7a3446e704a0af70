"""The memory of a training step in blocks, beside that of backprop through the whole network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from spela.data import Dataset
from spela.experiments import build_network
from spela.optim import LocalSGD
from spela.reports.words import size
from spela.training import RunConfig
from spela.training.memory import peak_step_bytes

__all__ = ["memory_line"]

# Their steps take the same bytes on the meta device, which computes nothing; attention's do not.
_COUNTABLE = ("vgg", "resnet")


def memory_line(config: RunConfig, summary: dict[str, Any], dataset: Dataset) -> str:
    """How much memory a step of a run in blocks takes, in words; empty for other runs.

    Args:
        config: The run's settings.
        summary: Its result.
        dataset: Its data.
    """
    peak = summary.get("peak_memory_bytes")
    if not config.network or config.method == "backprop" or not peak:
        return ""
    text = (
        f"A training step's tensors take {size(peak)} at their peak, beside weights, optimizer state "
        "and batch"
    )
    if summary["device"] != "cpu" or config.precision != "fp32" or config.network not in _COUNTABLE:
        return f"{text}."
    whole = _end_to_end_bytes(config, dataset)
    return (
        f"{text}; a step of backprop through the whole network on the same batch would take "
        f"{size(whole)} (counted from its shapes): the blocks take {100 * peak / whole:.0f} % of it."
    )


def _end_to_end_bytes(config: RunConfig, dataset: Dataset) -> int:
    steps = -(-len(dataset.train_y) // config.batch_size)
    begin = min(1, steps - 1) * config.batch_size  # the batch whose step the training loop measures
    batch = min(config.batch_size, len(dataset.train_y) - begin)
    meta = torch.device("meta")
    backprop = replace(config, method="backprop", blocks="")
    net = build_network(backprop, dataset.sample_shape, dataset.num_classes).to(meta)
    x = torch.empty(batch, *dataset.sample_shape, dtype=torch.float32, device=meta)
    target = torch.zeros(batch, dtype=torch.int64, device=meta)
    optimizer = LocalSGD(net.parameters(), config.lr)
    net.train()
    return peak_step_bytes(lambda: net.local_step(x, target, optimizer), optimizer, meta)[1]
