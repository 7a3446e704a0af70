"""`python -m bench.paper_table`: which settings are the published figures of the `paper` recipe of?

784-1000-34 is published at 91.20 / 96.66 % on MNIST and 86.39 / 89.77 % on Fashion-MNIST (hidden layer /
output, mean of five runs); the method as its text describes it stays below. Each row replaces something that
the text leaves open. Test accuracy by layer after the last epoch, the output's best epoch, and the
accuracy on the training images, in %; one seed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.block_table import settings_of
from spela.data import Dataset, load_dataset
from spela.experiments import load_run, make_config
from spela.experiments.runs import run
from spela.process import keep_freed_memory
from spela.training import TrainingDivergedError
from spela.training.evaluate import evaluate

__all__ = ["DATA", "ROWS", "main"]

DATA = ("mnist", "fashion-mnist")
ROWS = (
    "recipe=paper",
    "recipe=paper lr=0.1",
    "recipe=paper lr=0.5",
    "recipe=paper lr=2.5",
    "recipe=paper lr=10",
    "recipe=paper batch_size=10",
    "recipe=paper shuffle=False",
    "recipe=paper schedule=drop lr=2.5 lr_drop=0.1",
    "recipe=paper schedule=cosine lr=2.5",
    "recipe=paper momentum=0.9",
    "recipe=paper optimizer=adam lr=1e-3",
    "recipe=paper objective=log",
    "recipe=paper objective=log lr=2.5",
    "recipe=paper normalize_input=none",
    "recipe=paper normalize_input=none lr=2.5",
    "recipe=paper normalize_input=rms",
    "recipe=paper init=kaiming-normal",
    "recipe=paper bias_init=uniform",
    "recipe=paper activation=relu",
    "recipe=paper activation=identity",
    "recipe=paper vectors=gaussian",
    "recipe=tmlr",
    "recipe=tmlr objective=cosine",
    "recipe=tmlr normalize_input=unit",
    "recipe=tmlr shuffle=True",
    "recipe=tmlr init=kaiming-normal",
    "recipe=tmlr optimizer=adam lr=1e-3 schedule=constant",
    "recipe=tmlr schedule=constant lr=0.1",
    "recipe=paper batch_size=1",
)


def _figures(row: str, data: Dataset, epochs: int) -> str:
    settings = {"layers": (1000, 34), "epochs": epochs, **settings_of(row)}
    config = make_config(data.name, settings.pop("recipe"), **settings)
    with tempfile.TemporaryDirectory() as folder:
        try:
            summary = run(config, data, Path(folder) / "run")
        except TrainingDivergedError:
            return "diverged | | |"
        loaded = load_run(Path(folder) / "run")
    on_training = evaluate(loaded.net, data.train_x, data.train_y).accuracy
    best = max(record["test_accuracy"][-1] for record in loaded.records)
    cells = (summary["test_accuracy"], [best], on_training)
    return " | ".join(" / ".join(f"{100 * share:.2f}" for share in cell) for cell in cells) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table.

    Args:
        arguments: Of the command line; None: the process's.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=list(ROWS), help="settings, instead of the list")
    parser.add_argument("--data", nargs="+", default=list(DATA))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args(arguments)
    sets = [load_dataset(name, options.data_root) for name in options.data]
    columns = "".join(
        f"{data.name}, by layer | best epoch | on training images | " for data in sets
    )
    print(
        f"1000-34 and {options.epochs} epochs unless a row says otherwise, seed 0\n\n"
        f"| settings | {columns}".rstrip()
    )
    print(f"|---|{'---|---|---|' * len(sets)}", flush=True)
    for row in options.rows:
        figures = " ".join(_figures(row, data, options.epochs) for data in sets)
        print(f"| {row} | {figures}", flush=True)


if __name__ == "__main__":
    # The process is ours here, and set as the command line's workers are; `main` leaves a caller's alone.
    keep_freed_memory()
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    main()
