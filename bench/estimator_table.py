"""`python -m bench.estimator_table`: SpelaClassifier beside scikit-learn's MLPClassifier of the same layers.

scikit-learn's embedded datasets, 30 % held out by class, features standardised for both; test accuracy,
log loss of the probabilities, and wall seconds of `fit`, as means over seeds of split and training.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spela.estimator import SpelaClassifier

__all__ = ["main", "measure"]

DATASETS = {
    "digits": load_digits,
    "breast cancer": load_breast_cancer,
    "wine": load_wine,
    "iris": load_iris,
}
LAYERS = (100, 100)


def measure(model: Any, name: str, seed: int) -> tuple[float, float, float]:
    """Test accuracy in %, log loss in nats and seconds of one fit.

    Args:
        model: A classifier.
        name: One of `DATASETS`.
        seed: Of the split.
    """
    x, y = DATASETS[name](return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)
    started = time.perf_counter()
    model.fit(x, y)
    seconds = time.perf_counter() - started
    return 100 * model.score(x_test, y_test), log_loss(y_test, model.predict_proba(x_test)), seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    warnings.simplefilter("ignore", ConvergenceWarning)
    print("| data | SpelaClassifier: accuracy, log loss, s | MLPClassifier |\n|---|---|---|")
    for name in DATASETS:
        cells = []
        for build in (
            lambda seed: SpelaClassifier(LAYERS, random_state=seed),
            lambda seed: make_pipeline(StandardScaler(), MLPClassifier(LAYERS, random_state=seed)),
        ):
            rows = np.array([measure(build(seed), name, seed) for seed in seeds])
            spread, (accuracy, loss, seconds) = rows[:, 0].std(ddof=1), rows.mean(axis=0)
            cells.append(f"{accuracy:.2f} +- {spread:.2f}, {loss:.3f}, {seconds:.2f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
