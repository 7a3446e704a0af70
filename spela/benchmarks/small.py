"""Whole fits of small data: SpelaClassifier beside scikit-learn's MLPClassifier and a plain torch loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

__all__ = ["SMALL_DATA", "SMALL_FITS", "fit_steps", "small_data"]

# Under their names in sklearn.datasets. It is imported where it is needed: a GPU's machine may lack it.
SMALL_DATA = {
    "digits": "load_digits",
    "breast cancer": "load_breast_cancer",
    "wine": "load_wine",
    "iris": "load_iris",
}
LAYERS = (100, 100)
Fit = Callable[[np.ndarray, np.ndarray, int], object]


def _spela(x: np.ndarray, y: np.ndarray, epochs: int) -> object:
    from spela.estimator import SpelaClassifier

    # As MLPClassifier below, it would stop before the last epoch where its loss stands still.
    model = SpelaClassifier(LAYERS, max_iter=epochs, n_iter_no_change=epochs, random_state=0)
    return model.fit(x, y)


def _spela_in_its_batches(x: np.ndarray, y: np.ndarray, epochs: int) -> object:
    """Ours in as many steps as MLPClassifier makes; its own batches are smaller, a tenth of the samples."""
    from spela.estimator import SpelaClassifier

    batch = min(200, len(x))
    model = SpelaClassifier(
        LAYERS, batch_size=batch, max_iter=epochs, n_iter_no_change=epochs, random_state=0
    )
    return model.fit(x, y)


def _mlp_classifier(x: np.ndarray, y: np.ndarray, epochs: int) -> object:
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    model = MLPClassifier(LAYERS, max_iter=epochs, n_iter_no_change=epochs, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        return model.fit(StandardScaler().fit_transform(x), y)


def _torch_loop(x: np.ndarray, y: np.ndarray, epochs: int) -> object:
    """Backprop as people write it, on tensors in memory: MLPClassifier's layers and batches."""
    from sklearn.preprocessing import StandardScaler

    rows = torch.as_tensor(StandardScaler().fit_transform(x), dtype=torch.float32)
    labels = torch.as_tensor(y)
    net = nn.Sequential(
        nn.Linear(rows.shape[1], LAYERS[0]),
        nn.ReLU(),
        nn.Linear(*LAYERS),
        nn.ReLU(),
        nn.Linear(LAYERS[1], int(labels.max()) + 1),
    )
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(epochs):
        for index in torch.randperm(len(rows)).split(min(200, len(rows))):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(rows[index]), labels[index]).backward()
            optimizer.step()
    return net


SMALL_FITS: dict[str, Fit] = {
    "spela": _spela,
    "spela_same_batches": _spela_in_its_batches,
    "mlp_classifier": _mlp_classifier,
    "torch_loop": _torch_loop,
}
"""Whole fits by name; each takes (N, I) features, (N,) labels and the number of epochs."""


def small_data(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, I) and labels (N,).

    Args:
        name: A key of `SMALL_DATA`.

    Example:
        >>> small_data("wine")[0].shape
        (178, 13)
    """
    from sklearn import datasets

    x, y = getattr(datasets, SMALL_DATA[name])(return_X_y=True)
    return x, y


def fit_steps(data: str, epochs: int) -> dict[str, Callable[[], object]]:
    """What to time: one fit each.

    Args:
        data: A key of `SMALL_DATA`.
        epochs: Passes over it; batches of ours are a tenth of the samples up to 100,
            of the others, and of `spela_same_batches`, up to 200.

    Example:
        >>> sorted(fit_steps("wine", 1))
        ['mlp_classifier', 'spela', 'spela_same_batches', 'torch_loop']
    """
    x, y = small_data(data)
    return {name: partial(fit, x, y, epochs) for name, fit in SMALL_FITS.items()}
