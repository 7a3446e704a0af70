"""Early exit on trained networks: thresholds against accuracy, multiply-adds and time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spela.data import Dataset, prepare
from spela.early_exit import ExitPolicy, calibrate_thresholds, layer_costs, mean_multiply_adds
from spela.early_exit.policy import margin_and_label
from spela.experiments.plan import Job, Options, data_label
from spela.experiments.runner import finished_summary, run_folder
from spela.experiments.runs import load_data, load_run
from spela.network import SpelaSequential
from spela.process import threads_used

__all__ = ["measure_exits"]

THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.1)
MAX_LOSS = 0.002  # share of samples the calibrated thresholds may cost
_BATCH = 1000
_REPEATS = 5


def measure_exits(jobs: list[Job], options: Options, before: dict[str, Any]) -> dict[str, Any]:
    """Accuracy and cost of early exit for every finished run.

    Thresholds are calibrated on every second test sample and measured on the others, so no figure is of
    a sample that chose them.

    Args:
        jobs: The experiment's runs.
        options: Where they are.
        before: What was measured so far: it stays for runs whose weights are gone.

    Returns:
        {"points": one a run and threshold, "calibrated": one a run}, and "unavailable": the reason, if a
        run could not be measured.
    """
    points: list[dict[str, Any]] = []
    calibrated: list[dict[str, Any]] = []
    problem = ""
    with threads_used(1):
        for job in jobs:
            folder = run_folder(options, job.key)
            if finished_summary(folder, job.config) is None:
                continue
            data = data_label(job.config.data)
            facts = {"row": job.row.name, "data": data, "seed": job.config.seed, "run": job.key}
            try:
                found = _trained(folder.path, job, options)
            except (ValueError, OSError) as error:
                earlier = _earlier(before, "calibrated", facts)
                if earlier:
                    points += _earlier(before, "points", facts)
                    calibrated += earlier
                else:
                    problem = str(error)
                continue
            if found is None:
                continue
            net, dataset = found
            x, y = prepare(dataset.test_x), dataset.test_y
            sweep, chosen = _exits(net, (x[1::2], y[1::2]), (x[::2], y[::2]))
            points += [{**facts, **point} for point in sweep]
            calibrated.append({**facts, **chosen})
    if not calibrated:
        return {"unavailable": problem or "no finished run to measure"}
    unavailable = {"unavailable": problem} if problem else {}
    return {"points": points, "calibrated": calibrated, "max_loss": MAX_LOSS, **unavailable}


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


@torch.no_grad()
def _exits(
    net: SpelaSequential,
    held_out: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    x, y = test
    prices = layer_costs(net, tuple(x.shape[1:]))
    margins, answers = _margins(net, x)  # (L, N) each
    layers = len(margins)
    last = torch.full((len(y),), layers - 1, device="cpu")
    whole = mean_multiply_adds(prices, None, last)

    def point(policy: ExitPolicy) -> dict[str, Any]:
        sure = margins >= margins.new_tensor([*policy.thresholds, -torch.inf])[:, None]
        layer = sure.int().argmax(dim=0)  # (N,) the first sure layer; the last one always is
        hits = answers.gather(0, layer[None])[0] == y
        share = torch.bincount(layer, minlength=layers).double() / len(y)
        return {
            "accuracy": 100 * float(hits.double().mean()),
            "multiply_adds": mean_multiply_adds(prices, policy, layer) / whole,
            "exits": share.tolist(),
        }

    uniform = {t: ExitPolicy((t,) * (layers - 1)) for t in THRESHOLDS}
    sweep = [{"threshold": t, **point(policy)} for t, policy in uniform.items()]
    policy = calibrate_thresholds(net, *held_out, max_loss=MAX_LOSS)
    full = _milliseconds(lambda batch: net.predict(batch), x)
    early = _milliseconds(lambda batch: net.predict(batch, exit_threshold=policy), x)
    chosen = {
        # A layer that never answers has no threshold: infinity is no JSON.
        "thresholds": [t if math.isfinite(t) else None for t in policy.thresholds],
        **point(policy),
        "full_accuracy": 100 * float((answers[-1] == y).double().mean()),
        "full_ms": full,
        "early_ms": early,
    }
    return sweep, chosen


def _margins(net: SpelaSequential, x: Tensor) -> tuple[Tensor, Tensor]:
    margins, answers = [], []
    for batch in x.split(_BATCH):
        margin, label = zip(*map(margin_and_label, net.layer_scores(batch)), strict=True)
        margins.append(torch.stack(margin))
        answers.append(torch.stack(label))
    return torch.cat(margins, dim=1), torch.cat(answers, dim=1)


def _milliseconds(predict: Callable[[Tensor], object], x: Tensor) -> float:
    """Median time of all samples in batches of 1000, after one pass to warm up."""
    times = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        for batch in x.split(_BATCH):
            predict(batch)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[1:])
