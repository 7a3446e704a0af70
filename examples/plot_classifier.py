"""
====================================================
SpelaClassifier: curves, boundaries, and a warm start
====================================================

Layers that learn without a backward pass, behind scikit-learn's interface, beside an
:class:`~sklearn.neural_network.MLPClassifier` of the same layers.

    python examples/plot_classifier.py
"""

# %%
# Two half moons
# --------------
# Two classes that no straight line separates, with some noise.

from __future__ import annotations

import warnings

import matplotlib.pyplot as plt
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning
from sklearn.inspection import DecisionBoundaryDisplay
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spela import SpelaClassifier

warnings.simplefilter("ignore", ConvergenceWarning)

x, y = make_moons(400, noise=0.25, random_state=0)
x_train, x_test, y_train, y_test = train_test_split(x, y, stratify=y, random_state=0)

# %%
# The same layers, with and without a backward pass
# -------------------------------------------------
# `SpelaClassifier` standardises by itself; all of its layers answer, and the answer is their mean.

models = {
    "SpelaClassifier": SpelaClassifier((32, 32), max_iter=60, random_state=0),
    "MLPClassifier": make_pipeline(
        StandardScaler(), MLPClassifier((32, 32), max_iter=60, random_state=0)
    ),
}
figure, panels = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True)
for panel, (name, model) in zip(panels, models.items(), strict=True):
    model.fit(x_train, y_train)
    DecisionBoundaryDisplay.from_estimator(
        model, x, response_method="predict_proba", cmap="RdBu", alpha=0.7, ax=panel
    )
    panel.scatter(*x_test.T, c=y_test, cmap="RdBu", edgecolors="black", s=18)
    accuracy = model.score(x_test, y_test)
    panel.set_title(f"{name}: {100 * accuracy:.0f} % of the test points")
    print(f"{name}: {100 * accuracy:.1f} %")
figure.tight_layout()
plt.show()

# %%
# What it says while it learns
# ----------------------------
# With `early_stopping` a part is held out: the accuracy on it after every epoch is in
# `validation_scores_`, the mean loss of the layers in `loss_curve_`. With `warm_start` another `fit`
# goes on where the first one ended, and the curves with it.

online = SpelaClassifier(
    (32, 32), max_iter=20, early_stopping=True, n_iter_no_change=20, warm_start=True, random_state=0
)
online.fit(x_train, y_train)
first = online.n_iter_
online.set_params(learning_rate=1e-3).fit(x_train, y_train)
print(f"{first} epochs, then {online.n_iter_ - first} more: {online.score(x_test, y_test):.3f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
epochs = range(1, online.n_iter_ + 1)
left.plot(epochs, online.loss_curve_)
left.set(title="loss_curve_", xlabel="epoch")
right.plot(epochs, online.validation_scores_, color="tab:green")
right.set(title="validation_scores_", xlabel="epoch")
for panel in (left, right):
    panel.axvline(first + 0.5, color="grey", linestyle=":")
figure.tight_layout()
plt.show()
