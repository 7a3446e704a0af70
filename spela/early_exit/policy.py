"""Early exit: when a layer is sure enough to answer, and how its thresholds are found.

A layer is sure of a sample by its margin: the score of the best class minus that of the second. Lower
thresholds save more work and trust earlier layers more. `calibrate_thresholds` looks for cheap thresholds
whose accuracy on held-out data stays within a given loss of the whole network's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spela.early_exit.costs import LayerCost, layer_costs
from spela.layers import LocalLayer
from spela.layers.hooks import hooked_input
from spela.layers.modes import in_eval_mode, output_of
from spela_kernels.contracts import check_labels, check_target

__all__ = [
    "ExitPolicy",
    "Prediction",
    "calibrate_thresholds",
    "exit_thresholds",
    "margin_and_label",
    "mean_multiply_adds",
]

CALIBRATION_BATCH = 1000
# Prices of a lost answer, in units of the whole network's work on a sample; tried from high to low.
_PRICES = tuple(10.0 ** (power / 16) for power in range(80, -16, -1))


@dataclass(frozen=True)
class ExitPolicy:
    """From which margin each layer answers.

    Attributes:
        thresholds: One margin in score for every SPELA layer but the last, which always answers;
            infinity: the layer never answers, and its scores are not computed.

    Raises:
        ValueError: If a threshold is NaN.
        TypeError: If one is no number.

    Example:
        >>> ExitPolicy((0.3, math.inf)).thresholds
        (0.3, inf)
    """

    thresholds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.thresholds, Iterable):
            raise TypeError(
                f"`thresholds` must be one number a layer, got {self.thresholds!r}: "
                "as exit_threshold, one number for all layers needs no policy"
            )
        values = tuple(_number("thresholds", value) for value in self.thresholds)
        if any(math.isnan(value) for value in values):
            raise ValueError(f"`thresholds` must be numbers, got {values}")
        object.__setattr__(self, "thresholds", values)


class Prediction(NamedTuple):
    """Answers, and how sure and how early they were.

    Attributes:
        labels: (B,) int64.
        margin: (B,) score of the best class minus that of the second: the confidence.
        layer: (B,) int64, index of the SPELA layer that answered, from 0.
    """

    labels: Tensor
    margin: Tensor
    layer: Tensor


def exit_thresholds(exit_threshold: float | ExitPolicy | None, layers: int) -> tuple[float, ...]:
    """The threshold of each of `layers` SPELA layers: the last one's is minus infinity.

    Args:
        exit_threshold: One margin for all layers, a policy, or None: the last layer answers.
        layers: Number of SPELA layers.

    Raises:
        ValueError: If a policy has another number of thresholds, or the number is NaN (of several layers).
        TypeError: If it is no number and no policy.

    Example:
        >>> exit_thresholds(0.5, 3)
        (0.5, 0.5, -inf)
    """
    if exit_threshold is None:
        exit_threshold = math.inf
    if not isinstance(exit_threshold, ExitPolicy):
        threshold = _number("exit_threshold", exit_threshold)
        exit_threshold = ExitPolicy((threshold,) * (layers - 1))
    if len(exit_threshold.thresholds) != layers - 1:
        raise ValueError(
            f"`exit_threshold` has {len(exit_threshold.thresholds)} thresholds, the network needs "
            f"{layers - 1}: one for each of its {layers} SPELA layers but the last"
        )
    return (*exit_threshold.thresholds, -math.inf)


def _number(
    name: str, value: object, such: str = "numbers, such as 0.3 or ExitPolicy((0.3, 0.2))"
) -> float:
    if not isinstance(value, (str, bytes, bool)):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):  # what follows says it
            return float(value)  # type: ignore[arg-type]
    raise TypeError(f"`{name}` must be {such}, got {value!r}")


def margin_and_label(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Margin (B,) between the best and the second class, and the best class (B,).

    Args:
        scores: (B, C); with one class the margin is 0, as there is nothing to be sure against.

    Example:
        >>> margin_and_label(torch.tensor([[0.5, 0.25, 0.0]]))
        (tensor([0.2500]), tensor([0]))
    """
    best = scores.topk(min(2, scores.shape[1]), dim=1).values
    # Of equal scores argmax names the first, topk any.
    return best[:, 0] - best[:, -1], scores.argmax(dim=1)


def mean_multiply_adds(
    costs: Sequence[LayerCost], policy: ExitPolicy | None, layer: Tensor
) -> float:
    """Mean multiply-adds a sample, given the layer at which each one was answered.

    Args:
        costs: From `layer_costs`.
        policy: The policy in use; layers whose threshold is infinite are not scored.
        layer: (B,) int64, as in `Prediction`.

    Example:
        >>> costs = [LayerCost(100, 10), LayerCost(200, 20)]
        >>> mean_multiply_adds(costs, ExitPolicy((0.1,)), torch.tensor([0, 1]))
        220.0
    """
    thresholds = exit_thresholds(policy, len(costs))
    spent = _spent(costs, thresholds)
    return torch.tensor(spent, dtype=torch.float64, device="cpu")[layer.cpu()].mean().item()


def _spent(costs: Sequence[LayerCost], thresholds: Sequence[float]) -> list[float]:
    total, totals = 0.0, []
    for cost, threshold in zip(costs, thresholds, strict=True):
        total += cost.forward + (cost.scores if threshold != math.inf else 0)
        totals.append(total)
    return totals


class _Answers(NamedTuple):
    """What every layer says about the calibration samples."""

    margin: Tensor  # (L, N) float64
    loss: Tensor  # (L, N) float64: 1 a right answer of the last layer lost, -1 one gained, else 0


@torch.no_grad()
def _answers(net: nn.Sequential, x: Tensor, y: Tensor) -> _Answers:
    margins, hits = [], []
    with in_eval_mode(net):
        for part, target in zip(
            x.split(CALIBRATION_BATCH), y.split(CALIBRATION_BATCH), strict=True
        ):
            margin, hit = [], []
            part = hooked_input(net, part)
            for module in net:
                part = output_of(module, part)
                if isinstance(module, LocalLayer):
                    sure, label = margin_and_label(module.scores(part))
                    margin.append(sure)
                    hit.append(label == target)  # (B,)
            margins.append(torch.stack(margin))
            hits.append(torch.stack(hit))
    # In the scores' own precision and then exact, so that a threshold is a margin the network can meet.
    right = torch.cat(hits, 1).cpu().double()  # (L, N)
    return _Answers(torch.cat(margins, 1).cpu().double(), right[-1] - right)


def _outcome(
    answers: _Answers, costs: Sequence[LayerCost], thresholds: Sequence[float]
) -> tuple[float, float]:
    """Mean multiply-adds and mean loss."""
    samples = answers.margin.shape[1]
    loss, cost = 0.0, 0.0
    waiting = torch.ones(samples, dtype=torch.bool, device="cpu")
    for layer, spent in enumerate(_spent(costs, thresholds)):
        leaves = waiting & (answers.margin[layer] >= thresholds[layer])
        loss += answers.loss[layer, leaves].sum().item()
        cost += spent * int(leaves.sum())
        waiting &= ~leaves
    return cost / samples, loss / samples


def _best_threshold(
    answers: _Answers,
    costs: Sequence[LayerCost],
    thresholds: list[float],
    layer: int,
    price: float,
) -> float:
    """The threshold of one layer that minimises work + price * loss, the others as they are."""
    margin, samples = answers.margin, answers.margin.shape[1]
    reached = torch.ones(samples, dtype=torch.bool, device="cpu")
    for before in range(layer):
        reached &= margin[before] < thresholds[before]
    if not reached.any():
        return thresholds[layer]
    # What becomes of each sample that stays: the work from here on, and the loss.
    stay_work = torch.zeros(samples, dtype=torch.float64, device="cpu")
    stay_loss = torch.zeros(samples, dtype=torch.float64, device="cpu")
    waiting, work = reached.clone(), 0.0
    for after in range(layer + 1, len(costs)):
        work += costs[after].forward
        work += costs[after].scores if thresholds[after] != math.inf else 0
        leaves = waiting & (margin[after] >= thresholds[after])
        stay_work[leaves] = work
        stay_loss[leaves] = answers.loss[after, leaves]
        waiting &= ~leaves
    ordered, order = margin[layer, reached].sort(descending=True)
    saved = stay_work[reached] + price * (stay_loss[reached] - answers.loss[layer, reached])
    saved = saved[order]
    total = saved.cumsum(0) - costs[layer].scores * len(ordered)  # leaving down to this margin
    total[:-1][ordered[:-1] == ordered[1:]] = -math.inf  # equal margins leave together
    value, index = total.max(0)
    return ordered[index].item() if value > 0 else math.inf


def calibrate_thresholds(
    net: nn.Sequential, x: Tensor, y: Tensor, max_loss: float = 0.002, *, credit_gains: bool = False
) -> ExitPolicy:
    """A policy of few multiply-adds whose accuracy loss on held-out data is small enough.

    Early layers lose some of the last layer's right answers and gain others. Only the lost ones count,
    unless `credit_gains`: on Fashion-MNIST, gains seen on 5,000 samples were no promise for the next 5,000.
    Every price of a lost answer, from high to low, gives thresholds that minimise work + price * loss (one
    layer at a time, exactly, until none changes); of all policies met on the way, the cheapest one whose
    loss is allowed is kept. No price leads to some policies, and one of them may be cheaper still.

    Args:
        net: A network that ends in a SPELA layer; used in eval mode.
        x: (N, ...) inputs of the network that it was not trained on.
        y: (N,) int64 labels.
        max_loss: Share of answers, 0..1, that may be lost against the last layer.
        credit_gains: Set the answers gained off against those lost, so that the loss is that of the
            accuracy on these samples: cheaper, and more often passed on others.

    Returns:
        An `ExitPolicy`; one that never exits early, if nothing cheaper passes.

    Raises:
        ValueError: If there are no samples, numbers differ, a label is no class, max_loss is no share, or the
            network does not end in a SPELA layer.
        TypeError: If inputs and labels are no tensors, the labels not int64, or `max_loss` no number.

    Example:
        >>> from spela.layers import SpelaLinear
        >>> from spela.network import SpelaSequential
        >>> net = SpelaSequential(SpelaLinear(4, 8, 3), SpelaLinear(8, 8, 3))
        >>> x = torch.randn(50, 4)
        >>> policy = calibrate_thresholds(net, x, net.predict(x), max_loss=1.0)
        >>> bool((net.predict_detailed(x, policy).layer == 0).all())  # any loss will do
        True
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise TypeError(
            f"`x` and `y` must be tensors, got {type(x).__name__} and {type(y).__name__}: use "
            "torch.as_tensor"
        )
    max_loss = _number("max_loss", max_loss, "a number, such as 0.002")
    if not 0 <= max_loss <= 1:
        raise ValueError(f"`max_loss` must be a share in 0..1, such as 0.002, got {max_loss}")
    if len(x) == 0 or y.shape != (len(x),):
        raise ValueError(
            f"`x` and `y` must hold the same samples, at least one: got x {tuple(x.shape)} and "
            f"y {tuple(y.shape)}"
        )
    last_layer = list(net)[-1] if len(net) else None
    if not isinstance(last_layer, LocalLayer):
        raise ValueError(f"`net` must end in a SPELA layer, got {type(last_layer).__name__}")
    if y.dtype != torch.int64:
        raise TypeError(f"`y` must be int64 class indices, got {y.dtype}: use y.long()")
    check_target(x, y)
    check_labels(y, last_layer.num_classes)
    costs = layer_costs(net, tuple(x.shape[1:]), x.dtype)
    answers = _answers(net, x, y)
    if not credit_gains:
        answers.loss.clamp_(min=0)
    whole = sum(cost.forward + cost.scores for cost in costs)
    last = len(costs) - 1
    never = [math.inf] * last + [-math.inf]
    best, least = never, _outcome(answers, costs, never)[0]

    def consider(candidate: list[float]) -> None:
        nonlocal best, least
        cost, loss = _outcome(answers, costs, candidate)
        # Rounding of the mean must not refuse a loss that is exactly the one allowed.
        if cost < least and loss <= max_loss + 1e-9:
            best, least = list(candidate), cost

    for layer in range(last):  # a network cut short after each layer
        consider([*never[:layer], *[-math.inf] * (last + 1 - layer)])
    thresholds = list(never)
    for price in (whole * samples for samples in _PRICES):
        for _ in range(2 * len(costs)):
            old = list(thresholds)
            for layer in reversed(range(last)):
                thresholds[layer] = _best_threshold(answers, costs, thresholds, layer, price)
            if thresholds == old:
                break
        consider(thresholds)
    return ExitPolicy(tuple(best[:-1]))
