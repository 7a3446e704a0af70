"""What a trained network is: facts of its run folder, as lines of text or a Markdown model card."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spela.data.inputs import takes_images
from spela.experiments import LoadedRun, load_run
from spela.experiments.unread import unread_settings
from spela.files.text import printable
from spela.reports.words import makers
from spela.training import RunFolder, extension_note

__all__ = ["Card", "as_markdown", "as_text", "describe"]

MAX_CLASSES_NAMED = 100


@dataclass(frozen=True)
class Card:
    """Facts of a run.

    Attributes:
        path: The run folder.
        run: Its network and checkpoint.
        tensors: Named tensors in the checkpoint file.
        size: Of that file, in bytes.
        metrics: The record of the last epoch that the checkpoint knows, if it is there and sound:
            test_accuracy, train_loss (lists), vote_accuracy, seconds.
    """

    path: Path
    run: LoadedRun
    tensors: int
    size: int
    metrics: dict[str, Any]

    @property
    def parameters(self) -> int:
        """Trained numbers."""
        return sum(p.numel() for p in self.run.net.parameters())

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.run.checkpoint.epoch >= self.run.checkpoint.config.total_epochs


def describe(path: str | Path) -> Card:
    """Read a run folder.

    Args:
        path: The folder.

    Returns:
        A `Card`.

    Raises:
        ValueError: If it holds no readable checkpoint, or its files disagree.
    """
    folder = RunFolder(path)
    run = load_run(path)
    return Card(
        Path(path),
        run,
        len(run.checkpoint.tensors),
        folder.checkpoint.stat().st_size,
        _sound(run.records[-1]) if run.records else {},
    )


def _sound(record: dict[str, Any]) -> dict[str, Any]:
    """The entries that are what they should be: the file may be damaged."""

    def is_number(value: object) -> bool:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )

    found: dict[str, Any] = {}
    for name in ("test_accuracy", "train_loss"):
        values = record.get(name)
        if isinstance(values, list) and values and all(is_number(v) for v in values):
            found[name] = values
    for name in ("vote_accuracy", "seconds"):
        if is_number(record.get(name)):
            found[name] = record[name]
    return found


def _facts(card: Card) -> list[tuple[str, str]]:
    checkpoint = card.run.checkpoint
    config = checkpoint.config
    names = [printable(name) for name in checkpoint.class_names[:MAX_CLASSES_NAMED]]
    more = len(checkpoint.class_names) - len(names)
    pixels = checkpoint.sample_dtype == torch.uint8
    shape = " x ".join(map(str, checkpoint.sample_shape))
    accuracy = card.metrics.get("test_accuracy", [])
    shown = " / ".join(f"{100 * share:.2f}" for share in accuracy) or "not recorded"
    if "vote_accuracy" in card.metrics and len(accuracy) > 1:
        shown += f", all layers' mean score {100 * card.metrics['vote_accuracy']:.2f}"
    note = extension_note(config, checkpoint.extended_at)
    return [
        ("method", f"{config.method}, recipe {printable(config.recipe)}, seed {config.seed}"),
        ("data", printable(config.data)),
        ("input", f"{shape}, {'pixels 0..255 divided by 255' if pixels else 'features as stored'}"),
        ("classes", f"{', '.join(names)}{f' and {more} more' if more else ''}"),
        ("epochs", f"{checkpoint.epoch} of {config.total_epochs}{f', {note}' if note else ''}"),
        ("test accuracy of each layer, %", shown),
        ("parameters", f"{card.parameters:,}"),
        ("file", f"{card.tensors} tensors, {card.size:,} bytes"),
        ("made by", makers(checkpoint.made_by or [{"torch": checkpoint.torch_version}])),
    ]


def _settings(card: Card) -> dict[str, Any]:
    """Those that the run reads."""
    config = card.run.checkpoint.config
    unread = unread_settings(config)
    return {name: value for name, value in config.to_dict().items() if name not in unread}


def as_text(card: Card) -> str:
    """Lines for a terminal: facts, settings, architecture."""
    checkpoint = card.run.checkpoint
    lines = [
        f"checkpoint after {checkpoint.epoch} of {checkpoint.config.total_epochs} epochs",
        *(f"{name}: {value}" for name, value in _facts(card)),
        "settings:",
        *(f"  {k}: {printable(v)}" for k, v in _settings(card).items()),
        repr(card.run.net),
    ]
    return "\n".join(lines)


def _cell(value: object) -> str:
    text = printable(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return text.replace("](", "]\\(")  # no link or picture


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _metrics(card: Card) -> str:
    accuracy, loss = (card.metrics.get(name, []) for name in ("test_accuracy", "train_loss"))
    if not accuracy:
        return "No metrics of this epoch are recorded in the run folder."
    rows = [
        (
            str(layer + 1),
            f"{100 * share:.2f}",
            f"{loss[layer]:.4f}" if layer < len(loss) else "",
        )
        for layer, share in enumerate(accuracy)
    ]
    if "vote_accuracy" in card.metrics and len(accuracy) > 1:
        rows.append(("mean of all scores", f"{100 * card.metrics['vote_accuracy']:.2f}", ""))
    return _table(("layer", "test accuracy, %", "training loss"), rows)


def _limits(card: Card) -> list[str]:
    config = card.run.checkpoint.config
    limits = [
        "One run with one seed: the spread over seeds is not known from it.",
        "Accuracies are on the test split of the data above; nothing is known about other data, and "
        "inputs of none of the classes get a class all the same.",
    ]
    if config.method == "spela":
        limits.append("Scores are cosines in -1..1, not calibrated probabilities.")
    if config.noise > 0:
        limits.append(f"Training and test images had noise of standard deviation {config.noise}.")
    if not card.finished:
        limits.append("Training is not finished: the learning rate has not run its schedule.")
    return limits


def as_markdown(card: Card) -> str:
    """A model card: data, training, metrics of every layer, limits, how to load."""
    settings = [(k, str(v)) for k, v in _settings(card).items()]
    folder = printable(card.path)
    quoted = shlex.quote(folder)
    samples = "image.png" if takes_images(card.run.checkpoint.sample_shape) else "samples.npz"
    limits = "\n".join(f"- {limit}" for limit in _limits(card))
    return f"""# Model card: {_cell(card.path.resolve().name)}

{_table(("", ""), _facts(card))}

## Metrics

After the last epoch in the checkpoint; no epoch was chosen by its test accuracy.

{_metrics(card)}

## Limits

{limits}

## Training settings

{_table(("setting", "value"), settings)}

## Architecture

```
{repr(card.run.net).replace("```", "'''")}
```

## How to load

The checkpoint is safetensors: reading it runs no code.

```bash
spela evaluate {quoted}
spela predict {quoted} {samples}
```

```python
from spela.experiments import load_run

net = load_run({folder!r}).net  # eval mode; net.layer_scores(x), net.predict(x)
```
"""
