"""`python -m bench.tuning_table`: are the recipes fair to the rivals? Learning rates on held-out images.

Every recipe of the main table with its learning rate divided and multiplied by three, 1024 x 3 hidden
units, a few epochs on 50,000 of Fashion-MNIST's training images, judged on the other 10,000: no test
image is looked at. Accuracy of the last layer in %, seed 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch

from spela.data import Dataset, load_dataset
from spela.experiments import make_config
from spela.experiments.runs import run
from spela.process import keep_freed_memory
from spela.training import TrainingDivergedError

__all__ = ["main", "parted_training"]

RECIPES = ("best", "backprop", "backprop-sgd", "ff", "pepita", "mono")
FACTORS = (1 / 3, 1.0, 3.0)


def parted_training(dataset: Dataset, samples: int) -> Dataset:
    """The training split alone, with some of its samples, drawn once, as test split.

    Args:
        dataset: Its test split is left out.
        samples: How many of the training split are held out.
    """
    count = len(dataset.train_y)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    train, test = order.split([count - samples, samples])
    return dataclasses.replace(
        dataset,
        train_x=dataset.train_x[train],
        train_y=dataset.train_y[train],
        test_x=dataset.train_x[test],
        test_y=dataset.train_y[test],
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--samples", type=int, default=10_000, help="held out")
    options = parser.parse_args()
    data = parted_training(load_dataset(options.data), options.samples)
    print("| recipe | a third | its learning rate | three times |\n|---|---|---|---|", flush=True)
    for recipe in RECIPES:
        rate = make_config(options.data, recipe).lr
        cells = []
        for factor in FACTORS:
            config = make_config(options.data, recipe, lr=factor * rate, epochs=options.epochs)
            with tempfile.TemporaryDirectory() as folder:
                try:
                    summary = run(config, data, Path(folder) / "run")
                except TrainingDivergedError:
                    cells.append("diverged")
                    continue
            cells.append(f"{100 * summary['test_accuracy'][-1]:.2f}")
        print(f"| {recipe}, {rate:g} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    # The process is ours here, and set as the command line's workers are; `main` leaves a caller's alone.
    keep_freed_memory()
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    main()
