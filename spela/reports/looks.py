"""A trained network on some test samples: what each layer answers, and what some layers put out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spela.data import Dataset, prepare
from spela.experiments import LoadedRun
from spela.layers import LocalLayer
from spela.layers.modes import output_of

__all__ = ["LayerLook", "Looks", "look_at"]

MOST_SAMPLES = 500
# Input values at a time: the maps of a convolution are some hundred times larger.
VALUES = 100_000


@dataclass(frozen=True)
class LayerLook:
    """A layer that answers, on N samples.

    Attributes:
        name: Of the layer, for titles.
        outputs: (N, features) float32.
        scores: (N, C) float32.
        scores_are_cosines: Or logits.
    """

    name: str
    outputs: Tensor
    scores: Tensor
    scores_are_cosines: bool


@dataclass(frozen=True)
class Looks:
    """What a network says of N test samples.

    Attributes:
        index: (N,) their places in the test set.
        labels: (N,) their classes.
        answers: (L, N) the class each layer names.
        margins: (N,) by how much the last layer prefers its answer to the second best.
        layers: The first, middle and last layer of a SPELA network; none of others.
    """

    index: Tensor
    labels: Tensor
    answers: Tensor
    margins: Tensor
    layers: list[LayerLook]


@torch.no_grad()
def look_at(run: LoadedRun, dataset: Dataset, names: Sequence[str]) -> Looks:
    """Send test samples at equal distances through a network, a few at a time.

    Args:
        run: A network in eval mode.
        dataset: The data it was trained on.
        names: Of the layers that answer.

    Returns:
        What came out, on the CPU.
    """
    total = len(dataset.test_y)
    count = min(MOST_SAMPLES, total)
    # At equal distances: files are often sorted by class.
    index = torch.arange(count, device=dataset.test_y.device) * total // count
    device = next(run.net.parameters()).device
    # First, middle and last show how the classes gather with depth; more would not fit a page.
    chosen = sorted({0, len(names) // 2, len(names) - 1})
    passes = [
        _pass(run, prepare(dataset.test_x[part]).to(device), chosen)
        for part in index.split(max(1, VALUES // dataset.num_features))
    ]
    scores = [torch.cat(parts) for parts in zip(*(scores for scores, _ in passes), strict=True)]
    outputs = [torch.cat(parts) for parts in zip(*(kept for _, kept in passes), strict=True)]
    layers = [module for module in run.net if isinstance(module, LocalLayer)]
    best = scores[-1].topk(2, dim=1).values
    return Looks(
        index.cpu(),
        dataset.test_y[index].cpu(),
        torch.stack([of_layer.argmax(dim=1) for of_layer in scores]),
        best[:, 0] - best[:, 1],
        [
            LayerLook(names[k], y, scores[k], layers[k].scores_are_cosines)
            for k, y in zip(chosen, outputs, strict=bool(layers))
        ],
    )


def _pass(run: LoadedRun, x: Tensor, chosen: Collection[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Scores (B, C) of all layers that answer; outputs (B, features) of the chosen ones of SPELA's."""
    if not any(isinstance(module, LocalLayer) for module in run.net):
        return [scores.float().cpu() for scores in run.net.layer_scores(x)], []
    scores: list[Tensor] = []
    outputs = []
    for module in run.net:
        x = output_of(module, x)
        if isinstance(module, LocalLayer):
            if len(scores) in chosen:
                outputs.append(x.float().flatten(1).cpu())
            scores.append(module.scores(x).float().cpu())
    return scores, outputs
