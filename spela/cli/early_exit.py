"""What `spela evaluate --exit-loss` adds: accuracy, work and wall time with and without early exit."""

from __future__ import annotations

import math
from typing import Any

import typer
from torch import nn

from spela.data import Dataset
from spela.network import SpelaSequential
from spela.reports.cells import change_text
from spela.training import ExitEvaluation, evaluate_early_exit

__all__ = ["early_exit_facts", "measure_early_exit", "print_early_exit"]


def measure_early_exit(net: nn.Module, dataset: Dataset, max_loss: float) -> ExitEvaluation:
    """Calibrate on each half of the test samples and measure on the other.

    Args:
        net: The trained network.
        dataset: Its data, on the network's device.
        max_loss: Share of answers that may be lost.

    Raises:
        ValueError: If the network has no layers to leave at.
    """
    if not isinstance(net, SpelaSequential) or len(net.local_layers) < 2:
        raise ValueError(
            "--exit-loss needs a network of at least two SPELA layers: this run's has none to "
            "leave early at"
        )
    return evaluate_early_exit(net, dataset.test_x, dataset.test_y, max_loss)


def early_exit_facts(found: ExitEvaluation) -> dict[str, Any]:
    """The figures for JSON."""
    facts = {**vars(found), "saved": found.saved, "thresholds": found.thresholds}
    del facts["policies"]
    return facts


def print_early_exit(found: ExitEvaluation, max_loss: float) -> None:
    """The figures as lines."""
    count = sum(found.leaving)
    typer.echo(
        f"early exit, at most {100 * max_loss:g} points lost: all {count:,} test samples, each half of "
        "them (random, seed 0) under thresholds chosen on the other half:"
    )
    for half, policy in zip(("first", "second"), found.policies, strict=True):
        margins = " ".join(
            "never" if threshold == math.inf else f"{threshold:.4f}"
            for threshold in policy.thresholds
        )
        typer.echo(f"  margins to leave at, {half} half: {margins}")
    typer.echo(
        f"  accuracy: {100 * found.accuracy:.2f} %, last layer alone {100 * found.full_accuracy:.2f} %"
    )
    typer.echo(
        f"  multiply-adds a sample: {found.multiply_adds:,.0f} of {found.full_multiply_adds:,.0f}, "
        f"{change_text(found.saved, 'saved', 'more', 1)}"
    )
    typer.echo(
        f"  wall time, batches of 1000: {1e3 * found.seconds:.1f} ms of "
        f"{1e3 * found.full_seconds:.1f} ms, "
        f"{change_text(1 - found.seconds / found.full_seconds, 'saved', 'more')}"
    )
    for layer, leaving in enumerate(found.leaving, start=1):
        typer.echo(f"  layer {layer} answers {leaving:,} ({100 * leaving / count:.1f} %)")
