"""`warm_start`: fit goes on from what was learnt, keeps the best of it, and refuses what does not fit it."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris

from spela import SpelaClassifier
from spela.data import epoch_generator
from spela.estimator.epochs import cosine_rate, train_epochs
from spela.estimator.parameters import device_of
from spela.estimator.rows import held_out

X, Y = load_iris(return_X_y=True)


def _fitted(**settings: Any) -> SpelaClassifier:
    return SpelaClassifier(16, max_iter=3, random_state=0, warm_start=True, **settings).fit(X, Y)


def test_it_goes_on_with_weights_moments_order_and_curve() -> None:
    model = _fitted()
    net, optimizer, curve = copy.deepcopy((model.net_, model.optimizer_, model.loss_curve_))
    net.float()
    x, y = torch.tensor(model.scaler_.transform(X)).float(), torch.tensor(Y)
    losses = [
        train_epochs(
            net, optimizer, x, y,
            batch_size=16,  # "auto" of 150 samples
            generators=[epoch_generator(model.seed_, 3 + epoch)],
            rate=partial(cosine_rate, 5e-3, 3, epoch),
            dropout=0.1,
        )[0]
        for epoch in range(3)
    ]  # fmt: skip
    optimizer_before = model.optimizer_
    assert model.fit(X, Y).optimizer_ is optimizer_before
    assert model.n_iter_ == 6
    assert model.loss_curve_ == curve + losses
    for ours, theirs in zip(model.net_.parameters(), net.double().parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_its_temperature_is_of_the_last_weights() -> None:
    model = _fitted().fit(X, Y)
    from spela.estimator.calibration import fit_temperature

    scores = torch.from_numpy(model.decision_function(X))
    assert model.temperature_ == pytest.approx(fit_temperature(scores, torch.tensor(Y)), rel=1e-9)


def test_without_it_each_fit_starts_anew() -> None:
    model = _fitted().set_params(warm_start=False)
    first = model.decision_function(X)
    np.testing.assert_array_equal(model.fit(X, Y).decision_function(X), first)
    assert model.n_iter_ == len(model.loss_curve_) == 3


def test_the_first_call_starts_as_any_other() -> None:
    cold = clone(_fitted()).set_params(warm_start=False).fit(X, Y)
    np.testing.assert_array_equal(_fitted().decision_function(X), cold.decision_function(X))


def test_it_goes_on_after_partial_fit() -> None:
    model = SpelaClassifier(16, max_iter=3, random_state=0, warm_start=True)
    model.partial_fit(X, Y, classes=[0, 1, 2])
    scale = model.scaler_.mean_.copy()
    model.fit(X[:75] + 1, np.resize([0, 1, 2], 75))
    assert model.n_iter_ == 4
    np.testing.assert_array_equal(model.scaler_.mean_, scale)


def test_early_stopping_keeps_what_was_better_before() -> None:
    model = _fitted(early_stopping=True, n_iter_no_change=2)
    before, scores = model.decision_function(X), list(model.validation_scores_)
    model.set_params(learning_rate=1e4, max_iter=50).fit(X, Y)
    assert model.validation_scores_[: len(scores)] == scores
    assert len(model.validation_scores_) == model.n_iter_
    _, part, _, labels = held_out(X, Y, 0.1, model.seed_)
    assert max(model.validation_scores_[3:]) < model.score(part, labels)
    np.testing.assert_array_equal(model.decision_function(X), before)
    assert model.n_iter_ == 5  # two epochs without a better one


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden_layer_sizes", (16, 8), r"whose hidden_layer_sizes is \(16,\), not \(16, 8\)"),
        ("activation", "relu", "whose activation is 'gelu', not 'relu'"),
        ("objective", "log", "whose objective is 'softmax', not 'log'"),
        ("scale", 20, "whose scale is 6.0, not 20.0"),
        ("standardize", False, "whose standardize is True, not False"),
        ("early_stopping", True, "whose early_stopping is False, not True"),
        ("device", "meta", "whose device is 'cpu', not 'meta'"),
    ],
)
def test_other_settings_are_refused(name: str, value: Any, message: str) -> None:
    model = _fitted()
    before = model.decision_function(X)
    with pytest.raises(ValueError, match=message):
        model.set_params(**{name: value}).fit(X, Y)
    np.testing.assert_array_equal(model.decision_function(X), before)


def test_other_data_are_refused() -> None:
    model = _fitted()
    before = model.decision_function(X)
    few = Y < 2
    with pytest.raises(
        ValueError, match=r"classes of the fit before, \[0, 1, 2\], but y holds \[0, 1\]"
    ):
        model.fit(X[few], Y[few])
    with pytest.raises(ValueError, match="but y holds"):
        model.fit(X, np.array(["a", "b", "c"])[Y])
    with pytest.raises(ValueError, match="expecting 4 features"):
        model.fit(X[:, :3], Y)
    np.testing.assert_array_equal(model.decision_function(X), before)
    assert model.n_iter_ == 3


def test_rows_that_were_learnt_are_not_held_out_by_another_fraction() -> None:
    model = _fitted(early_stopping=True, validation_fraction=0.2)
    curve = list(model.loss_curve_)
    with pytest.raises(
        ValueError, match=r"whose validation_fraction is 0\.2, not 0\.5: put that back"
    ):
        model.set_params(validation_fraction=0.5).fit(X, Y)
    assert model.loss_curve_ == curve
    assert model.set_params(validation_fraction=0.2).fit(X, Y).n_iter_ > 3
    _fitted(validation_fraction=0.2).set_params(validation_fraction=0.5).fit(X, Y)  # holds out none


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_layer_sizes": (5, 5)},
        {"activation": "relu"},
        {"objective": "log"},
        {"scale": 3.0},
        {"standardize": False},
        {"device": "meta"},
    ],
)
def test_partial_fit_refuses_settings_of_another_network(settings: dict[str, Any]) -> None:
    model = SpelaClassifier(16, random_state=0).partial_fit(X, Y, classes=[0, 1, 2])
    before = model.decision_function(X)
    name = next(iter(settings))
    with pytest.raises(
        ValueError, match=rf"partial_fit goes on .*, whose {name} is .*: put that back"
    ):
        model.set_params(**settings).partial_fit(X, Y)
    np.testing.assert_array_equal(model.decision_function(X), before)
    model.set_params(**{name: clone(SpelaClassifier(16)).get_params()[name]}).partial_fit(X, Y)
    # What holds from now on may change.
    model.set_params(learning_rate=1e-3, batch_size=50, early_stopping=True).partial_fit(X, Y)


def test_device_0_is_a_gpu_as_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    empty = torch.empty

    def noted(*size: Any, device: Any = None, **settings: Any) -> torch.Tensor:
        asked.append(device)
        return empty(*size, **settings)

    monkeypatch.setattr(torch, "empty", noted)
    assert device_of(SpelaClassifier(device=0)) == torch.device("cpu")  # by the stand-in above
    assert device_of(SpelaClassifier()) == torch.device("cpu")
    assert asked == [0, "cpu"]


def test_the_seed_stays_that_of_the_first_call() -> None:
    kept, changed = _fitted(), _fitted().set_params(random_state=7)
    assert kept.fit(X, Y).loss_curve_ == changed.fit(X, Y).loss_curve_
    assert kept.seed_ == changed.seed_
