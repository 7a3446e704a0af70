"""SpelaClassifier: SPELA behind scikit-learn's estimator interface."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import LabelEncoder, StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor
from tqdm import tqdm

from spela.data import epoch_generator
from spela.estimator.calibration import fit_temperature
from spela.estimator.epochs import cosine_rate, epochs_a_call, train_epochs
from spela.estimator.network import build_rows_network, mean_scores, plain_mode, scoring_dtype
from spela.estimator.parameters import (
    batch_rows,
    check_built,
    check_goes_on,
    check_parameters,
    cosine_scale,
    device_of,
    input_share,
    layer_sizes,
)
from spela.estimator.rows import (
    check_range,
    classes_as_given,
    features_as_given,
    held_out,
    labels_as_given,
)
from spela.optim import LocalAdam
from spela_kernels.precision import without_inference

__all__ = ["SpelaClassifier"]

# Rows whose scores `partial_fit` keeps for the temperature.
_RECENT = 1000
_CURVES = ("loss_curve_", "validation_scores_")


class SpelaClassifier(ClassifierMixin, BaseEstimator):
    """A SPELA network of linear layers as a scikit-learn classifier.

    Every layer learns by its own local loss with Adam, in one forward pass a step; the answer is the mean
    of all layers' cosines to the class vectors. Features are standardised inside (a SPELA layer's input
    should be of order one), and every hidden layer's output is scaled to norm sqrt(features) by `RowNorm`
    before the next. The input itself is not row-normalised, because a row's length may tell its class.

    Args:
        hidden_layer_sizes: Outputs of each layer; all of them classify, there is no output layer.
        objective: log, cosine, angular, euclidean, mse, or softmax (over all classes).
        activation: leaky_relu, relu, tanh, elu, gelu, identity, or prelu.
        scale: Factor of the cosines in `softmax`; "auto": twice the number of classes, from 5 to 20.
        input_dropout: Share of the features, once standardised, that `fit` leaves out of each sample of a
            batch, in [0, 1); "auto": 0.1, and none of fewer than four features, where one alone may tell
            the class. `partial_fit`, which sees a sample once, leaves out none.
        learning_rate: Of Adam; falls to zero over `max_iter` epochs along half a cosine. `partial_fit`
            holds it constant.
        batch_size: Largest number of samples in a step; the batches of an epoch differ by one sample at most.
            "auto": in `fit` a tenth of the samples, but 16 at least and 100 at most, so that few samples
            still make several steps an epoch; 200 of 20,000 samples or more; in `partial_fit` 100.
        max_iter: Largest number of epochs of a `fit`.
        tol: Smallest improvement that counts, of the loss or the validation accuracy.
        n_iter_no_change: Training stops after this many epochs without an improvement.
        early_stopping: Hold out a part, watch the accuracy on it instead of the training loss, keep the
            weights of the best epoch, and fit the temperature on it.
        validation_fraction: Share held out, in (0, 1); by class where every class has enough samples.
        standardize: Centre the features and divide them by their deviation; False takes them as they are.
        random_state: Seed, RandomState or None: class vectors, weights, order, dropout and validation part.
            Read when a network begins: `warm_start` and `partial_fit` go on from their first seed.
        verbose: Show a progress bar; a number as True, and 0 as False.
        warm_start: Let `fit` go on from what the call before learnt, for up to `max_iter` epochs more with a
            schedule of their own; features keep the scale of the first call. With early_stopping pass the
            same samples in the same order, or only new ones: samples that it learnt must not be held out.
        device: Where to train and predict; None: the CPU.

    Attributes:
        classes_: (C,) labels, sorted.
        n_features_in_: Features seen in fit.
        feature_names_in_: Their names, where X has string column names.
        n_iter_: Epochs done since the start; a call of `partial_fit` counts as one.
        loss_curve_: Mean training loss of the layers in every epoch.
        validation_scores_: Accuracy on the part held out after every epoch; None without one.
        temperature_: T of predict_proba = softmax(decision / T), fitted by maximum likelihood on labels
            with Laplace smoothing (`spela/estimator/calibration.py`): on the part held out by early_stopping;
            without it on the training samples, which makes probabilities too sure; in partial_fit on the last
            1,000 samples, scored before they were learnt.
        net_: The trained `SpelaSequential`, in float64 where the device has it: a row's answer then does not
            depend on the rows beside it. Call `copy.deepcopy(net_).float()` to give it float32.
        optimizer_: Its `LocalAdam`.
        scaler_: The StandardScaler of the features, or None.
        encoder_: The LabelEncoder of the labels.
        seed_: What random_state gave.

    Source: TMLR 2025, Section 3, with the settings of the `best` recipe.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x, y = load_iris(return_X_y=True)
        >>> SpelaClassifier(random_state=0).fit(x, y).score(x, y) > 0.9
        True
    """

    _recent: tuple[Tensor, Tensor] | None  # scores and labels of the last samples

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100, 100),
        *,
        objective: str = "softmax",
        activation: str = "gelu",
        scale: float | str = "auto",
        input_dropout: float | str = "auto",
        learning_rate: float = 5e-3,
        batch_size: int | str = "auto",
        max_iter: int = 100,
        tol: float = 1e-4,
        n_iter_no_change: int = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        standardize: bool = True,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
        warm_start: bool = False,
        device: str | torch.device | None = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.objective = objective
        self.activation = activation
        self.scale = scale
        self.input_dropout = input_dropout
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.standardize = standardize
        self.random_state = random_state
        self.verbose = verbose
        self.warm_start = warm_start
        self.device = device

    @without_inference
    def fit(self, X: Any, y: Any) -> SpelaClassifier:
        """Train from the start, or with `warm_start` from where the call before ended.

        Args:
            X: (N, I) numbers.
            y: (N,) labels of any type, of at least two classes.

        Returns:
            The estimator. Where it ends otherwise, by an error or Ctrl-C, the estimator is as it was.

        Raises:
            ValueError: If a parameter or the data does not fit, the loss is no longer finite, or `warm_start`
                finds other settings, features or classes than those that it would go on from.
        """
        check_parameters(self)
        goes_on = bool(self.warm_start) and hasattr(self, "net_")
        with self._whole_or_not_at_all(), plain_mode():
            X, y = self._checked_data(X, y, reset=not goes_on)
            if goes_on:
                check_goes_on(self, y)
                self.net_.float()
                self._recent = None  # scores of other weights
            else:
                self._start(X.shape[1], y)
            labels, held = self.encoder_.transform(y), None
            if self.early_stopping:
                X, X_held, labels, labels_held = held_out(
                    X, labels, float(self.validation_fraction), self.seed_
                )
            if self.scaler_ is not None and not goes_on:
                self.scaler_.fit(X)
            if self.early_stopping:
                held = self._inputs(X_held), self._targets(labels_held)
            x, target = self._inputs(X), self._targets(labels)
            self._train(x, target, held, goes_on)
            self._score_precisely()
            self._calibrate(*((x, target) if held is None else held))
        return self

    @without_inference
    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> SpelaClassifier:
        """Learn from one more mini-batch: one pass over it, in steps of `batch_size`.

        Nothing is held out, whatever `early_stopping` is: that is of `fit`. The features' mean and deviation
        are updated with every call; the temperature is fitted on the scores of the last 1,000 samples from
        before they were learnt, after `fit` beside those that its own is of.

        Args:
            X: (N, I) numbers.
            y: (N,) labels.
            classes: All labels that will ever come; needed in the first call.

        Returns:
            The estimator. Where it ends otherwise, by an error or Ctrl-C, the estimator is as it was.

        Raises:
            ValueError: If a parameter or the data does not fit, or classes are missing or other ones.
        """
        check_parameters(self)
        if classes is not None:
            classes = classes_as_given(classes)
        first = not hasattr(self, "classes_")
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit")
        changed = not first and classes is not None
        if changed and not np.array_equal(self.classes_, np.unique(classes)):
            raise ValueError(
                f"classes={list(classes)} are not those of the first call, {self.classes_.tolist()}: "
                "leave the argument out"
            )
        with self._whole_or_not_at_all(), plain_mode():
            X, y = self._checked_data(X, y, reset=first)
            known = set(np.asarray(classes if first else self.classes_).tolist())
            unknown = [label for label in np.unique(y).tolist() if label not in known]
            if unknown:
                raise ValueError(f"y holds labels that are not in classes: {unknown}")
            if first:
                self._start(X.shape[1], classes)
            else:
                check_built(self, "partial_fit goes on with the network of the call before")
                if self.scaler_ is not None:
                    # What is out of all proportion to the samples before would spoil the scaler for good.
                    scaled = np.where(self.scaler_.var_ > 0, self.scaler_.transform(X), 0.0)
                    self._check_values(X, scaled)
            if self.scaler_ is not None:
                self.scaler_.partial_fit(X)
            x, target = self._inputs(X), self._targets(self.encoder_.transform(y))
            self._score_precisely()
            self._calibrate(x, target)
            self.net_.float()
            batch_size = 100 if isinstance(self.batch_size, str) else int(self.batch_size)
            self._epochs(x, target, batch_size, lambda *_: float(self.learning_rate))
            self._score_precisely()
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Mean cosine of the layers' outputs to each class vector.

        Args:
            X: (N, I) numbers.

        Returns:
            (N, C) in [-1, 1]; of two classes (N,) the second's less the first's.
        """
        scores = self._scores_of(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Labels (N,) of X (N, I): the class with the largest mean cosine."""
        scores = self._scores_of(X)
        return self.classes_[scores.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (N, C) of X (N, I): softmax of the mean cosines over `temperature_`."""
        scores = torch.from_numpy(self._scores_of(X))
        return torch.softmax(scores / self.temperature_, dim=1).numpy()

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms (N, C) of `predict_proba`."""
        scores = torch.from_numpy(self._scores_of(X))
        return torch.log_softmax(scores / self.temperature_, dim=1).numpy()

    @contextmanager
    def _whole_or_not_at_all(self) -> Iterator[None]:
        """Put back what was learnt before if the block ends by an exception."""
        learnt = vars(self).keys() - self.get_params(deep=False).keys()
        # Curves grow with every call: a list of numbers is copied fast.
        before = {name: copy.copy(vars(self)[name]) for name in learnt if name in _CURVES}
        before |= copy.deepcopy({name: vars(self)[name] for name in learnt if name not in _CURVES})
        try:
            yield
        except BaseException:
            for name in vars(self).keys() - self.get_params(deep=False).keys():
                delattr(self, name)
            self.__dict__.update(before)
            raise

    def _checked_data(self, X: Any, y: Any, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        X, y = validate_data(
            self, features_as_given(X), labels_as_given(y), reset=reset, dtype=np.float64, order="C"
        )
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        self._check_values(X)
        return X, y

    def _check_values(self, X: np.ndarray, scaled: np.ndarray | None = None) -> None:
        check_range(X, scaled, getattr(self, "feature_names_in_", None))

    def _start(self, features: int, labels: Any) -> None:
        """A fresh network for these labels."""
        encoder = LabelEncoder().fit(labels)
        if len(encoder.classes_) < 2:
            raise ValueError(
                f"there is only one class, {encoder.classes_.tolist()[0]!r}: a classifier needs at least two"
            )
        if any(label != label for label in encoder.classes_):
            raise ValueError("classes hold NaN, which is the label of no sample: leave it out")
        self.encoder_ = encoder
        self.classes_ = encoder.classes_
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.scaler_ = StandardScaler() if self.standardize else None
        self.net_ = build_rows_network(
            features,
            layer_sizes(self.hidden_layer_sizes),
            len(self.classes_),
            self.seed_,
            activation=self.activation,
            objective=self.objective,
            scale=cosine_scale(self.scale, len(self.classes_)),
        ).to(device_of(self))
        self.optimizer_ = LocalAdam(self.net_.parameters(), float(self.learning_rate))
        self.n_iter_ = 0
        self.loss_curve_: list[float] = []
        self.validation_scores_: list[float] | None = None
        self._held_share = float(self.validation_fraction)
        self._recent = None

    def _inputs(self, X: np.ndarray) -> Tensor:
        """Standardised features (N, I) in the dtype that scores, on the device."""
        device = next(self.net_.parameters()).device
        rows = X if self.scaler_ is None else self.scaler_.transform(X)
        self._check_values(X, rows)
        return torch.tensor(rows, dtype=scoring_dtype(device), device=device)

    def _targets(self, labels: np.ndarray) -> Tensor:
        return torch.tensor(labels, device=next(self.net_.parameters()).device)

    def _epochs(
        self,
        x: Tensor,
        target: Tensor,
        batch_size: int,
        rate: Callable[[int, float], float],
        *,
        count: int = 1,
        dropout: float = 0.0,
    ) -> None:
        self.loss_curve_ += train_epochs(
            self.net_,
            self.optimizer_,
            x.float(),
            target,
            batch_size=batch_size,
            generators=[epoch_generator(self.seed_, self.n_iter_ + k) for k in range(count)],
            rate=rate,
            dropout=dropout,
        )
        self.n_iter_ += count

    def _train(
        self, x: Tensor, target: Tensor, held: tuple[Tensor, Tensor] | None, goes_on: bool
    ) -> None:
        """Epochs until `max_iter` or until nothing improves; the best weights where some are held out."""
        best, since, weights = -math.inf, 0, None
        if held is not None:
            self.validation_scores_ = self.validation_scores_ or []
            if goes_on:  # what was learnt before may stay the best
                best, weights = self._right(held), copy.deepcopy(self.net_.state_dict())
        top = best
        x, batch_size = x.float(), batch_rows(self.batch_size, len(x))
        dropout = input_share(self.input_dropout, x.shape[1])
        # Held-out samples, and whoever watches, are shown every epoch.
        most = (
            1 if held is not None or self.verbose else epochs_a_call(self.net_, len(x), batch_size)
        )
        epoch = 0
        with tqdm(total=self.max_iter, desc="SpelaClassifier", disable=not self.verbose) as bar:
            while epoch < self.max_iter and since < self.n_iter_no_change:
                # No more than it takes until training could end.
                count = min(most, self.max_iter - epoch, self.n_iter_no_change - since)
                rate = partial(cosine_rate, float(self.learning_rate), self.max_iter, epoch)
                self._epochs(x, target, batch_size, rate, count=count, dropout=dropout)
                for loss in self.loss_curve_[-count:]:
                    reached = -loss
                    if held is not None and self.validation_scores_ is not None:
                        reached = self._right(held)
                        self.validation_scores_.append(reached)
                        if reached >= top:
                            top, weights = reached, copy.deepcopy(self.net_.state_dict())
                    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                    since = 0 if reached > best + self.tol else since + 1
                    best = max(best, reached)
                bar.update(count)
                epoch += count
        if weights is not None:
            self.net_.load_state_dict(weights)

    def _right(self, held: tuple[Tensor, Tensor]) -> float:
        """Accuracy on samples held out."""
        named = mean_scores(self.net_, held[0].float()).argmax(dim=1)
        return float((named == held[1]).double().mean())

    def _score_precisely(self) -> None:
        """Cast the network to its scoring dtype; parameters stay the objects that the optimizer holds."""
        self.net_.to(scoring_dtype(next(self.net_.parameters()).device))

    def _calibrate(self, x: Tensor, target: Tensor) -> None:
        """Fit the temperature on these samples and the recent ones."""
        found = mean_scores(self.net_, x).cpu(), target.cpu()
        if self._recent is not None:
            found = torch.cat([self._recent[0], found[0]]), torch.cat([self._recent[1], found[1]])
        self.temperature_ = fit_temperature(*found)
        if len(x) > _RECENT:  # in no order: rows may come sorted by class
            chosen = torch.linspace(0, len(x) - 1, _RECENT, device="cpu").long() - len(x)
            found = found[0][chosen], found[1][chosen]
        self._recent = found[0][-_RECENT:], found[1][-_RECENT:]

    def _scores_of(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        with plain_mode():
            X = validate_data(self, features_as_given(X), reset=False, dtype=np.float64, order="C")
            self._check_values(X)
            return mean_scores(self.net_, self._inputs(X)).cpu().double().numpy()
