"""What early exit saves and loses: each half of the samples under the thresholds of the other half."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from spela.data import Batches, epoch_generator
from spela.early_exit import (
    ExitPolicy,
    Prediction,
    calibrate_thresholds,
    layer_costs,
    mean_multiply_adds,
)
from spela.layers.modes import in_eval_mode
from spela.network import SpelaSequential

__all__ = ["ExitEvaluation", "evaluate_early_exit"]

# Both ways are timed again until they have taken so long together: of a few samples a single call is chance.
_LEAST_SECONDS, _MOST_REPEATS = 0.4, 200


@dataclass(frozen=True)
class ExitEvaluation:
    """Result of `evaluate_early_exit`.

    Attributes:
        policies: The thresholds of each half, which were calibrated on the other.
        accuracy: Share of right answers, 0..1, with early exit.
        full_accuracy: The same by the last layer.
        multiply_adds: Mean multiply-adds a sample with early exit.
        full_multiply_adds: Those of the last layer's answer; no other layer is scored.
        seconds: Wall time of all samples with early exit, median of the repeats.
        full_seconds: The same by the last layer, measured in turn with it.
        leaving: Samples that each layer answered, first layer first.
    """

    policies: tuple[ExitPolicy, ExitPolicy]
    accuracy: float
    full_accuracy: float
    multiply_adds: float
    full_multiply_adds: float
    seconds: float
    full_seconds: float
    leaving: list[int]

    @property
    def saved(self) -> float:
        """Share of the multiply-adds that early exit saves."""
        return 1 - self.multiply_adds / self.full_multiply_adds

    @property
    def thresholds(self) -> list[list[float | None]]:
        """The margins of each half's policy as JSON values; None: no sample leaves there."""
        return [
            [margin if math.isfinite(margin) else None for margin in policy.thresholds]
            for policy in self.policies
        ]


def _answer(net: SpelaSequential, batches: list[Tensor], policy: ExitPolicy | None) -> Prediction:
    parts = [net.predict_detailed(batch, policy) for batch in batches]
    return Prediction(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _seconds(net: SpelaSequential, batches: list[Tensor], policy: ExitPolicy | None) -> float:
    on_gpu = batches[0].is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for batch in batches:
        net.predict(batch, policy)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def evaluate_early_exit(
    net: SpelaSequential,
    x: Tensor,
    y: Tensor,
    max_loss: float = 0.002,
    *,
    seed: int = 0,
    batch_size: int = 1000,
    repeats: int = 7,
) -> ExitEvaluation:
    """Calibrate on each random half of the samples, measure on the other, in eval mode.

    So no sample is answered under thresholds that it helped to choose, and the figures are of all.

    Args:
        net: A network of SPELA layers; its mode is put back afterwards.
        x: (N, ...) samples as stored by a dataset, that the network was not trained on.
        y: (N,) int64 labels.
        max_loss: Share of answers that may be lost, as for `calibrate_thresholds`.
        seed: Of the halves.
        batch_size: Samples at a time.
        repeats: Timings of each way, in turn; more where few samples take little time.

    Returns:
        An `ExitEvaluation`.

    Raises:
        ValueError: If there are fewer than two samples, or `max_loss` is no share.
    """
    if len(y) < 2:
        raise ValueError(
            "early exit needs at least two samples: one to calibrate on, one to measure"
        )
    order = torch.randperm(len(y), generator=epoch_generator(seed, 0), device="cpu").to(y.device)
    halves = order.tensor_split(2)
    # As inputs already: neither way of predicting should be timed with the conversion.
    batches = [[b for b, _ in Batches(x[h], y[h], batch_size, shuffle=False)] for h in halves]
    target = y[order]
    with in_eval_mode(net):
        policies = tuple(
            calibrate_thresholds(net, torch.cat(batches[other]), y[halves[other]], max_loss)
            for other in (1, 0)
        )
        early = [_answer(net, *half) for half in zip(batches, policies, strict=True)]
        full = [_answer(net, half, None) for half in batches]
        times: list[tuple[float, float]] = []
        while len(times) < repeats or (
            len(times) < _MOST_REPEATS and sum(map(sum, times)) < _LEAST_SECONDS
        ):
            times.append(
                (
                    sum(_seconds(net, *half) for half in zip(batches, policies, strict=True)),
                    sum(_seconds(net, half, None) for half in batches),
                )
            )
        costs = layer_costs(net, tuple(x.shape[1:]))
    spent = [
        mean_multiply_adds(costs, policy, half.layer) * len(half.layer)
        for policy, half in zip(policies, early, strict=True)
    ]
    layers = torch.cat([half.layer for half in early])
    return ExitEvaluation(
        policies=(policies[0], policies[1]),
        accuracy=_accuracy(early, target),
        full_accuracy=_accuracy(full, target),
        multiply_adds=sum(spent) / len(y),
        full_multiply_adds=mean_multiply_adds(costs, None, full[0].layer),
        seconds=median(early_seconds for early_seconds, _ in times),
        full_seconds=median(full_seconds for _, full_seconds in times),
        leaving=layers.bincount(minlength=len(costs)).tolist(),
    )


def _accuracy(parts: list[Prediction], target: Tensor) -> float:
    labels = torch.cat([part.labels for part in parts])
    return (labels == target).double().mean().item()
