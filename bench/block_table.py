"""`python -m bench.block_table`: settings of networks in blocks, judged on held-out training images.

Each row is the recipe of a network with some settings replaced, trained on a part of the training images
and judged on others that were held out: no test image is looked at. Accuracy of the last block, of the mean
of all blocks' scores and of each block in %, one seed: differences below a point or so are chance.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.tuning_table import parted_training
from spela.data import load_dataset
from spela.experiments import NETWORKS, make_config
from spela.experiments.runs import run
from spela.process import keep_freed_memory
from spela.training import TrainingDivergedError

__all__ = ["ROWS", "main", "settings_of"]

# What was tried: end to end, and one block a layer with other heads, rates and rivals.
ROWS = (
    "recipe=backprop",
    "recipe=backprop lr=1e-3",
    "recipe=backprop lr=4e-3",
    "blocks=layers",
    "blocks=layers head_hidden=0",
    "blocks=layers head_hidden=512 readout=512",
    "blocks=layers head_hidden=1024 readout=1024",
    "blocks=layers readout=512",
    "blocks=layers head_channels=32",
    "blocks=layers head_channels=64",
    "blocks=layers readout=64",
    "blocks=layers scale=10",
    "blocks=layers lr=1e-3",
    "blocks=layers lr=4e-3",
    "blocks=layers similarity=0.5",
    "blocks=layers dropout=0.2",
    "blocks=layers objective=log",
    "recipe=predsim blocks=layers",
    "recipe=predsim blocks=layers similarity=0.99",
    "recipe=predsim blocks=layers similarity=0.99 lr=5e-4",
    "recipe=predsim blocks=layers similarity=0.75",
    "recipe=predsim blocks=layers similarity=0.5",
    "recipe=predsim blocks=layers lr=6e-3",
    "recipe=mono blocks=layers",
    "recipe=supervised blocks=layers",
    "blocks=3 whiten=True",
    "recipe=backprop whiten=True",
)


def settings_of(row: str) -> dict[str, Any]:
    """Settings as written in a row.

    Args:
        row: name=value, with spaces between.

    Raises:
        ValueError: If a word is not of this form.

    Example:
        >>> settings_of("blocks=layers lr=1e-3")
        {'blocks': 'layers', 'lr': 0.001}
    """
    found: dict[str, Any] = {}
    for word in row.split():
        name, equals, text = word.partition("=")
        if not (name and equals and text):
            raise ValueError(f"a row is name=value name=value ..., got {word!r}")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    if "blocks" in found:
        found["blocks"] = str(found["blocks"])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table.

    Args:
        arguments: Of the command line; None: the process's.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=list(ROWS), help="settings, instead of the list")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--model", choices=tuple(NETWORKS), default="vgg")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--samples", type=int, default=20_000, help="to train on")
    parser.add_argument("--held-out", type=int, default=5_000, help="to judge by")
    options = parser.parse_args(arguments)
    data = parted_training(load_dataset(options.data, options.data_root), options.held_out)
    data = dataclasses.replace(
        data, train_x=data.train_x[: options.samples], train_y=data.train_y[: options.samples]
    )
    print(
        f"{options.model} of width {options.width}, {options.data}: {len(data.train_y)} training images, "
        f"{len(data.test_y)} held out, {options.epochs} epochs, seed 0\n\n"
        "| settings | accuracy, % | all blocks | by block | last training loss | seconds an epoch |\n"
        "|---|---|---|---|---|---|",
        flush=True,
    )
    common = {"model": options.model, "width": options.width, "augment": True}
    for row in options.rows:
        settings = {**common, "epochs": options.epochs, **settings_of(row)}
        config = make_config(options.data, settings.pop("recipe", "best"), **settings)
        with tempfile.TemporaryDirectory() as folder:
            try:
                summary = run(config, data, Path(folder) / "run")
            except TrainingDivergedError:
                print(f"| {row} | diverged | | | | |", flush=True)
                continue
        accuracy = [f"{100 * share:.1f}" for share in summary["test_accuracy"]]
        together = f"{100 * summary['vote_accuracy']:.1f}"
        loss, seconds = summary["train_loss"][-1], summary["seconds_per_epoch"]
        print(
            f"| {row} | {accuracy[-1]} | {together} | {' '.join(accuracy)} | {loss:.3f} | {seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    # The process is ours here, and set as the command line's workers are; `main` leaves a caller's alone.
    keep_freed_memory()
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    main()
