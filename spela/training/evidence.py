"""A run's files read together: what they say counts only where they agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from spela.training.checkpoint import Checkpoint, load_checkpoint
from spela.training.records import RunFolder

__all__ = ["Evidence", "check_weights", "read_checkpoint", "read_evidence", "weight_norms"]

_OF_THE_LAST_EPOCH = (
    "test_accuracy",
    "vote_accuracy",
    "top5_accuracy",
    "train_loss",
    "weight_norm",
)
_IN_EVERY_RECORD: dict[str, type | tuple[type, ...]] = {
    "train_loss": list,
    "test_accuracy": list,
    "weight_norm": list,
    "vote_accuracy": (int, float),
    "seconds": (int, float),
}
_TOLERANCE = 1e-6  # of a weight norm, relative: sums differ by device


@dataclass(frozen=True)
class Evidence:
    """What a run's files say, and agree on.

    Attributes:
        records: Of the epochs done, oldest first.
        summary: Of a finished run, else None.
    """

    records: list[dict[str, Any]]
    summary: dict[str, Any] | None


def read_evidence(folder: RunFolder) -> Evidence:
    """Read a run's records and its summary, where it is finished.

    Args:
        folder: Of the run; its checkpoint need not be there.

    Returns:
        What they say.

    Raises:
        ValueError: If they disagree with each other or with the settings, or cannot be read.
    """
    return _agreed(folder, with_checkpoint=False)[0]


def read_checkpoint(folder: RunFolder) -> tuple[Evidence, Checkpoint]:
    """Read a run's checkpoint beside what else its folder has; a checkpoint may lie there alone.

    Args:
        folder: Of the run.

    Returns:
        What its other files say, with the records of the checkpoint's epochs, and the checkpoint.

    Raises:
        ValueError: If there is no readable checkpoint, or the files disagree.
    """
    evidence, checkpoint = _agreed(folder, with_checkpoint=True)
    assert checkpoint is not None
    return Evidence(evidence.records[: checkpoint.epoch], evidence.summary), checkpoint


def _agreed(folder: RunFolder, with_checkpoint: bool) -> tuple[Evidence, Checkpoint | None]:
    # In this order a run that is being trained agrees with itself: a summary comes last, and records
    # before their checkpoint.
    config = _read_object(folder, folder.config)
    summary = _read_object(folder, folder.summary)
    checkpoint = load_checkpoint(folder.checkpoint) if with_checkpoint else None
    records = folder.read_metrics()
    try:
        problem = _in_the_records(records)
        if summary is not None:
            problem = problem or _in_the_summary(summary, config, records)
        if checkpoint is not None:
            found = records if folder.holds(folder.metrics) else None
            problem = problem or _in_the_checkpoint(checkpoint, config, summary, found)
    except (RecursionError, OverflowError) as error:
        problem = f"its files hold what no run writes ({error})"
    if problem:
        raise _refused(folder, problem)
    return Evidence(records, summary), checkpoint


def _read_object(folder: RunFolder, path: Path) -> dict[str, Any] | None:
    """A file's JSON object; None where there is no file."""
    if not folder.holds(path):
        return None
    held = folder.read_json(path)
    if not isinstance(held, dict):
        raise _refused(folder, f"{path.name} is no JSON object")
    return held


def _refused(folder: RunFolder, problem: str) -> ValueError:
    problem = " ".join(problem.split())  # one line, whatever names the files hold
    return ValueError(
        f"{folder.path} disagrees with itself: {problem}; put the run's own file back, or remove the "
        "folder and train it again"
    )


def _in_the_records(records: list[dict[str, Any]]) -> str:
    epochs = [0, *(record["epoch"] for record in records)]
    wrong = [second for first, second in pairwise(epochs) if second != first + 1]
    if wrong:
        return f"epoch {wrong[0]} is out of order in metrics.jsonl"
    for record in records:
        for name, kind in _IN_EVERY_RECORD.items():
            if not isinstance(record.get(name), kind):
                return f"epoch {record['epoch']} in metrics.jsonl has no {name}"
    return ""


def _in_the_summary(
    summary: dict[str, Any], config: dict[str, Any] | None, records: list[dict[str, Any]]
) -> str:
    settings = summary.get("config")
    if not isinstance(settings, dict) or config not in (None, settings):
        return f"summary.json has other settings than config.json ({_different(settings, config)})"
    if summary.get("seed") != settings.get("seed"):
        return "summary.json has two seeds"
    epochs = summary.get("epochs")
    total = _total(settings)
    found = len(records)
    if not epochs == total == found or not 1 <= settings["epochs"] <= found:
        return f"summary.json says {epochs} epochs, its settings {total}, and metrics.jsonl has {found}"
    extended = summary.get("extended_at", [])
    if not isinstance(extended, list) or not all(type(epoch) is int for epoch in extended):
        return f"summary.json was extended at {extended!r}"
    last = records[-1]
    for name in _OF_THE_LAST_EPOCH:
        # As text: a figure may be NaN.
        if repr(summary.get(name)) != repr(last.get(name)):
            return f"{name} in summary.json is not that of the last epoch in metrics.jsonl"
    if summary.get("peak_memory_bytes") != records[0].get("peak_memory_bytes"):
        return "peak_memory_bytes in summary.json is not that of the first epoch in metrics.jsonl"
    seconds = [record.get("seconds", 0.0) for record in records[: settings["epochs"]]]
    if not all(isinstance(value, int | float) for value in seconds) or (
        summary.get("seconds_per_epoch") != median(seconds)
    ):
        return "seconds_per_epoch in summary.json is not the median of metrics.jsonl"
    return ""


def _in_the_checkpoint(
    checkpoint: Checkpoint,
    config: dict[str, Any] | None,
    summary: dict[str, Any] | None,
    records: list[dict[str, Any]] | None,
) -> str:
    settings = checkpoint.config.to_dict()
    if checkpoint.extended_at and summary is None and config is not None:
        # The run was resumed with more epochs and stopped before config.json had them.
        config = config | {name: settings[name] for name in ("epochs", "head_epochs")}
    for name, other in (("config.json", config), ("summary.json", summary and summary["config"])):
        if other not in (None, settings):
            return f"checkpoint.safetensors has other settings than {name} ({_different(settings, other)})"
    if summary is not None:
        if summary["epochs"] != checkpoint.epoch:
            return f"summary.json says {summary['epochs']} epochs, checkpoint.safetensors {checkpoint.epoch}"
        if summary.get("extended_at", []) != list(checkpoint.extended_at):
            return "extended_at in summary.json is not that of checkpoint.safetensors"
        if checkpoint.made_by and summary.get("made_by") != list(checkpoint.made_by):
            return "made_by in summary.json is not that of checkpoint.safetensors"
    if records is not None and len(records) < checkpoint.epoch:
        return (
            f"metrics.jsonl has lost records of the {checkpoint.epoch} epochs that checkpoint.safetensors "
            f"has done, it has {len(records)}"
        )
    return ""


def _total(settings: dict[str, Any]) -> int | None:
    counts = [settings.get("epochs"), settings.get("head_epochs")]
    return sum(counts) if all(type(count) is int for count in counts) else None  # type: ignore[arg-type]


def _different(settings: Any, other: Any) -> str:
    if not isinstance(settings, dict) or not isinstance(other, dict):
        return "one is no JSON object"
    names = sorted(settings.keys() | other.keys())
    return ", ".join(
        f"{name} {settings.get(name)!r}, {other.get(name)!r}"
        for name in names
        if settings.get(name) != other.get(name)
    )


def weight_norms(net: nn.Module) -> list[float]:
    """Frobenius norm of every linear and convolution layer's weights in order; 0 on the meta device.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> with torch.no_grad():
        ...     _ = layer.weight.fill_(1.0)
        >>> weight_norms(nn.Sequential(layer))
        [2.0]
    """
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    weights = [layer.weight.detach() for layer in layers]
    return [0.0 if w.is_meta else float(torch.linalg.vector_norm(w.double())) for w in weights]


def check_weights(folder: RunFolder, evidence: Evidence, net: nn.Module) -> None:
    """Refuse records of other weights than those of the checkpoint.

    Args:
        folder: Of the run.
        evidence: From `read_checkpoint`.
        net: The network with the checkpoint's weights.

    Raises:
        ValueError: If the norms of the weights are not those of the last record.
    """
    noted = evidence.records[-1].get("weight_norm") if evidence.records else None
    if noted is None:
        return
    found = weight_norms(net)
    same = (
        isinstance(noted, list)
        and len(noted) == len(found)
        and all(isinstance(norm, float) for norm in noted)
        and all(_close(a, b) for a, b in zip(noted, found, strict=True))
    )
    if not same:
        raise _refused(
            folder,
            f"the weights in checkpoint.safetensors are not those of epoch {len(evidence.records)} in "
            "metrics.jsonl",
        )


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_TOLERANCE) or (math.isnan(a) and math.isnan(b))
