"""Accuracies of a network as lines of text, which `train` and `evaluate` print alike."""

from __future__ import annotations

import typer

__all__ = ["print_accuracy", "print_batch_statistics", "print_top5"]


def print_accuracy(accuracy: list[float], vote: float) -> None:
    """One line a layer, in percent, and one for the vote of all."""
    for layer, value in enumerate(accuracy, start=1):
        typer.echo(f"layer {layer}: {100 * value:.2f} %")
    if len(accuracy) > 1:
        typer.echo(f"all layers' mean score: {100 * vote:.2f} %")


def print_top5(accuracy: list[float] | None) -> None:
    """One line: how often the class is among each layer's five best, if there are more classes."""
    if accuracy is not None:
        shares = ", ".join(f"{100 * share:.2f} %" for share in accuracy)
        typer.echo(f"class among the five best, by layer: {shares}")


def print_batch_statistics(accuracy: list[float] | None) -> None:
    """One line on what batch norm with each test batch's own statistics gives, if there is one."""
    if accuracy is not None:
        shares = ", ".join(f"{100 * share:.2f} %" for share in accuracy)
        typer.echo(f"with each test batch's own statistics in batch norm: {shares}")
