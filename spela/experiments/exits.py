"""Early exit on trained networks: thresholds against accuracy, multiply-adds and time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spela.data import Dataset, prepare
from spela.early_exit import ExitPolicy, layer_costs, mean_multiply_adds
from spela.experiments.plan import Job, Options, data_label
from spela.experiments.runner import finished_summary, run_folder
from spela.experiments.runs import load_data, load_run
from spela.network import SpelaSequential
from spela.process import threads_used
from spela.training import evaluate_early_exit

__all__ = ["measure_exits"]

THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.1)
MAX_LOSS = 0.002  # share of samples that the calibrated thresholds may cost
_BATCH = 1000


def measure_exits(jobs: list[Job], options: Options, before: dict[str, Any]) -> dict[str, Any]:
    """Accuracy and cost of early exit for every finished run.

    Thresholds are calibrated on each half of the test samples and measured on the other, so no figure is of
    a sample that chose them.

    Args:
        jobs: The experiment's runs.
        options: Where they are.
        before: What was measured so far: it stays for runs whose weights are gone.

    Returns:
        {"points": one a run and threshold, "halves": one a run}, and "unavailable": the reason, if a
        run could not be measured.
    """
    points: list[dict[str, Any]] = []
    halves: list[dict[str, Any]] = []
    problem = ""
    with threads_used(1):
        for job in jobs:
            folder = run_folder(options, job.key)
            if finished_summary(folder, job.config) is None:
                continue
            data = data_label(job.config.data)
            facts = {"row": job.row.name, "data": data, "seed": job.config.seed, "run": job.key}
            try:
                trained = _trained(folder.path, job, options)
            except (ValueError, OSError) as error:
                earlier = _earlier(before, "halves", facts)
                if earlier:
                    points += _earlier(before, "points", facts)
                    halves += earlier
                else:
                    problem = str(error)
                continue
            if trained is None:
                continue
            net, dataset = trained
            sweep, found = _exits(net, prepare(dataset.test_x), dataset.test_y)
            points += [{**facts, **point} for point in sweep]
            halves.append({**facts, **found})
    if not halves:
        return {"unavailable": problem or "no finished run to measure"}
    unavailable = {"unavailable": problem} if problem else {}
    return {"points": points, "halves": halves, "max_loss": MAX_LOSS, **unavailable}


def _trained(path: Path, job: Job, options: Options) -> tuple[SpelaSequential, Dataset] | None:
    """A run's network and the data that it learnt from; None for a rival, which has no layers that answer.

    Raises:
        ValueError, OSError: Saying what to do.
    """
    try:
        loaded = load_run(path)
    except ValueError as error:
        raise ValueError(f"{error}; remove the folder {path} to train it again") from None
    if not isinstance(loaded.net, SpelaSequential):
        return None
    if job.problem:
        raise ValueError(job.problem)
    dataset = load_data(job.config, options.data_root)
    loaded.checkpoint.check_data(dataset, str(path), "bring the data back")
    return loaded.net, dataset


def _earlier(before: dict[str, Any], part: str, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured before of the same row and run."""
    return [m for m in before.get(part, []) if m.items() >= facts.items()]


def _exits(
    net: SpelaSequential, x: Tensor, y: Tensor
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The sweep of one threshold for all layers, and what `evaluate_early_exit` finds."""
    costs = layer_costs(net, tuple(x.shape[1:]))
    last = torch.tensor([len(costs) - 1], device="cpu")
    whole = mean_multiply_adds(costs, None, last)

    def point(threshold: float) -> dict[str, Any]:
        policy = ExitPolicy((threshold,) * (len(costs) - 1))
        parts = [net.predict_detailed(batch, policy) for batch in x.split(_BATCH)]
        labels, layer = (
            torch.cat([getattr(p, name) for p in parts]) for name in ("labels", "layer")
        )
        return {
            "threshold": threshold,
            "accuracy": 100 * (labels == y).double().mean().item(),
            "multiply_adds": mean_multiply_adds(costs, policy, layer) / whole,
            "exits": (layer.bincount(minlength=len(costs)).double() / len(y)).tolist(),
        }

    found = evaluate_early_exit(net, x, y, MAX_LOSS, batch_size=_BATCH)
    return [point(threshold) for threshold in THRESHOLDS], {
        "thresholds": found.thresholds,
        "accuracy": 100 * found.accuracy,
        "full_accuracy": 100 * found.full_accuracy,
        "multiply_adds": 1 - found.saved,
        "exits": [count / len(y) for count in found.leaving],
        "ms": 1000 * found.seconds,
        "full_ms": 1000 * found.full_seconds,
    }
