"""Learning rate as a pure function of the position in the run, so that resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Sequence

from spela.training.config import RunConfig

__all__ = ["extension_note", "learning_rate"]


def learning_rate(config: RunConfig, epoch: int, step: int, steps_per_epoch: int) -> float:
    """The learning rate of one step.

    Args:
        config: The run.
        epoch: Epochs done before this step.
        step: Steps done in this epoch.
        steps_per_epoch: Steps in an epoch.

    Returns:
        A rate >= 0: constant; (1 + cos(pi t)) / 2 of the initial one with t the share of all steps
        done; or the initial one less lr_drop for every 10 epochs done (as recipe `tmlr` has it).
    """
    epochs = config.epochs
    if epoch >= epochs:  # the head starts over
        epoch, epochs = epoch - epochs, config.head_epochs
    if config.schedule == "cosine":
        done = (epoch * steps_per_epoch + step) / (epochs * steps_per_epoch)
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "drop":
        return max(config.lr - config.lr_drop * (epoch // 10), 0.0)
    return config.lr


def extension_note(config: RunConfig, extended_at: Sequence[int]) -> str:
    """What it means for a result that its run was given more epochs; nothing where it was not.

    Args:
        config: The run.
        extended_at: How many epochs were done each time it was given more.

    Returns:
        One sentence, or "".
    """
    if not extended_at:
        return ""
    text = f"given more epochs after epoch {', '.join(map(str, extended_at))}: "
    if config.schedule == "cosine":
        return text + (
            "the learning rate, which the schedule had lowered for a shorter run, jumped back up there, so "
            f"this is not the result of one run of {config.total_epochs} epochs"
        )
    return text + f"the same as one run of {config.total_epochs} epochs, whose schedule is the same"
