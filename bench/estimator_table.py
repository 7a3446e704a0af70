"""`python -m bench.estimator_table`: SpelaClassifier beside scikit-learn's MLPClassifier of the same layers.

scikit-learn's embedded datasets and two toy sets, 30 % held out by class, or Fashion-MNIST with its own
test images (`--data fashion-mnist`); features standardised for both, and as many epochs at most;
MLPClassifier's in its own batches, and in those of SpelaClassifier, which are smaller on few samples and so
more steps. Test accuracy, log loss of the probabilities, and wall seconds of `fit`, as means over seeds of
split and training. The models of a seed are fitted one after the other, so that a busy machine slows all;
one epoch of each comes first, uncounted.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import (
    load_breast_cancer,
    load_digits,
    load_iris,
    load_wine,
    make_circles,
    make_moons,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spela.data import load_dataset
from spela.estimator import SpelaClassifier
from spela.estimator.parameters import batch_rows

__all__ = ["main", "measure", "samples"]

DATASETS: dict[str, Callable[..., Any]] = {
    "digits": load_digits,
    "breast cancer": load_breast_cancer,
    "wine": load_wine,
    "iris": load_iris,
    # Two features, 300 samples.
    "moons": lambda **_: make_moons(300, noise=0.2, random_state=0),
    "circles": lambda **_: make_circles(300, noise=0.1, factor=0.6, random_state=0),
}
FASHION = "fashion-mnist"
LAYERS = (100, 100)
Samples = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _rival(epochs: int, seed: int, batch_size: int | str) -> Any:
    model = MLPClassifier(LAYERS, max_iter=epochs, random_state=seed, batch_size=batch_size)
    return make_pipeline(StandardScaler(), model)


# Of epochs, seed and training rows.
MODELS: dict[str, Callable[[int, int, int], Any]] = {
    "SpelaClassifier": lambda epochs, seed, rows: SpelaClassifier(
        LAYERS, max_iter=epochs, random_state=seed
    ),
    "MLPClassifier": lambda epochs, seed, rows: _rival(epochs, seed, "auto"),
    "MLPClassifier, same batches": lambda epochs, seed, rows: _rival(
        epochs, seed, batch_rows("auto", rows)
    ),
}


def samples(name: str, seed: int, rows: int | None = None, root: Path | None = None) -> Samples:
    """Training and test features, training and test labels.

    Args:
        name: One of `DATASETS`, or fashion-mnist.
        seed: Of the split, and of the choice of rows.
        rows: Of Fashion-MNIST, how many to train on; None: all 60,000.
        root: Folder for datasets; None: where `spela train` looks.
    """
    if name != FASHION:
        x, y = DATASETS[name](return_X_y=True)
        return train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)  # type: ignore[return-value]
    data = load_dataset(name, root)
    chosen = np.random.default_rng(seed).permutation(len(data.train_y))[:rows]
    x, x_test = (part.flatten(1).numpy() / 255 for part in (data.train_x, data.test_x))
    return x[chosen], x_test, data.train_y.numpy()[chosen], data.test_y.numpy()


def measure(model: Any, parts: Samples) -> tuple[float, float, float]:
    """Test accuracy in %, log loss in nats and seconds of one fit.

    Args:
        model: A classifier.
        parts: From `samples`.
    """
    x, x_test, y, y_test = parts
    started = time.perf_counter()
    model.fit(x, y)
    seconds = time.perf_counter() - started
    return 100 * model.score(x_test, y_test), log_loss(y_test, model.predict_proba(x_test)), seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", choices=[*DATASETS, FASHION], default=[*DATASETS])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=100, help="most epochs of both")
    parser.add_argument("--rows", type=int, help=f"of {FASHION} to train on (default: all 60,000)")
    parser.add_argument("--data-root", type=Path, help="folder for datasets")
    asked = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(
        "| data | SpelaClassifier: accuracy, log loss, s "
        "| MLPClassifier | ahead | in the same batches | ahead |"
    )
    print("|---|---|---|---|---|---|")
    for name in asked.data:
        found: dict[str, list[tuple[float, float, float]]] = {model: [] for model in MODELS}
        for seed in range(asked.seeds):
            parts = samples(name, seed, asked.rows, asked.data_root)
            if seed == 0:
                for build in MODELS.values():
                    build(1, seed, len(parts[0])).fit(parts[0], parts[2])
            for model, build in MODELS.items():
                built = build(asked.epochs, seed, len(parts[0]))
                found[model].append(measure(built, parts))
        rows = {model: np.array(values) for model, values in found.items()}
        cells = [
            f"{_spread(values[:, 0])}, {values[:, 1].mean():.3f}, {values[:, 2].mean():.3f}"
            for values in rows.values()
        ]
        ours, *rivals = (values[:, 0] for values in rows.values())
        ahead = [_spread(ours - rival, "+") for rival in rivals]
        pairs = " | ".join(f"{cell} | {by}" for cell, by in zip(cells[1:], ahead, strict=True))
        print(f"| {name} | {cells[0]} | {pairs} |", flush=True)


def _spread(values: np.ndarray, sign: str = "") -> str:
    """Mean and deviation over seeds; of one seed there is none."""
    deviation = f" +- {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():{sign}.2f}{deviation}"


if __name__ == "__main__":
    main()
