"""SpelaClassifier keeps what it learnt when a call fails, and needs no global setting to be as it was."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import sklearn
import torch
from sklearn.datasets import load_iris
from sklearn.ensemble import AdaBoostClassifier
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from spela import SpelaClassifier, SpelaSequential
from spela.estimator.network import plain_mode
from spela.training import TrainingDivergedError
from tests.spela.torch_settings import default_dtype, warnings_are_errors

X, Y = load_iris(return_X_y=True)


def _online(**settings: Any) -> SpelaClassifier:
    model = SpelaClassifier(16, random_state=0, **settings)
    for _ in range(3):
        model.partial_fit(X, Y, classes=[0, 1, 2])
    return model


def _with(value: float) -> np.ndarray:
    x = X[:5].copy()
    x[3, 2] = value
    return x


@contextmanager
def _changes_nothing(model: SpelaClassifier) -> Iterator[None]:
    """The model answers as before, and goes on as a twin that never saw the block."""
    twin = SpelaClassifier(16, random_state=0)
    for _ in range(3):
        twin.partial_fit(X, Y, classes=[0, 1, 2])
    before = model.predict_proba(X)
    yield
    np.testing.assert_array_equal(model.predict_proba(X), before)
    assert model.n_iter_ == 3
    assert len(model.loss_curve_) == 3
    for one in (model, twin):
        one.partial_fit(X, Y)
    np.testing.assert_array_equal(model.predict_proba(X), twin.predict_proba(X))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.finfo(float).max, r"feature 2 of X is 1.79769e\+308 in row 3, beyond float32"),
        (-1e40, r"feature 2 of X is -1e\+40 in row 3, beyond float32"),
        (1e30, r"feature 2 of X is 1e\+30 in row 3, 5.68374e\+29 as the network takes it"),
        (np.nan, "Input X contains NaN"),
        (np.inf, "Input X contains infinity"),
    ],
)
def test_a_refused_batch_leaves_no_trace(value: float, message: str) -> None:
    model = _online()
    with _changes_nothing(model):
        with pytest.raises(ValueError, match=message):
            model.partial_fit(_with(value), Y[:5])
        for answer in (model.predict, model.predict_proba, model.decision_function):
            with pytest.raises(ValueError, match=message):
                answer(_with(value))
        with pytest.raises(ValueError, match=r"not in classes: \[7\]"):
            model.partial_fit(X[:5], [0, 1, 2, 7, 0])
        with pytest.raises(ValueError, match="expecting 4 features"):
            model.partial_fit(np.hstack([X, X[:, :1]]), Y)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_an_interrupted_call_leaves_no_trace(
    error: type[BaseException], call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, steps = _online(), []
    real = SpelaSequential.local_steps

    def interrupted(self: Any, *args: Any) -> torch.Tensor:
        real(self, *args)  # weights and moments have moved
        steps.append(1)
        raise error

    with _changes_nothing(model), monkeypatch.context() as patch:
        patch.setattr(SpelaSequential, "local_steps", interrupted)
        with pytest.raises(error):
            getattr(model, call)(X, Y)
        assert len(steps) == 1


def test_a_diverging_or_refused_fit_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _online()
    with _changes_nothing(model):
        with pytest.raises(ValueError, match="beyond float32"):
            model.fit(np.hstack([X, 1e40 * X]), Y)
        with pytest.raises(ValueError, match="only one class"):
            model.fit(X[:50], Y[:50])
        with monkeypatch.context() as patch:
            real = SpelaSequential.local_steps
            patch.setattr(SpelaSequential, "local_steps", lambda *args: real(*args) * math.nan)
            fresh = SpelaClassifier(16)
            for one in (model, fresh):
                for call in (lambda one=one: one.fit(X, Y), lambda: model.partial_fit(X, Y)):
                    with pytest.raises(ValueError, match="lower the learning rate"):
                        call()
    with pytest.raises(NotFittedError):
        fresh.predict(X)
    assert vars(fresh) == fresh.get_params()


def test_values_that_no_layer_can_norm_are_refused_by_name() -> None:
    frame = pandas.DataFrame(1e18 * X, columns=["a", "b", "c", "d"])
    message = r"feature 0 \('a'\) of X is 5.1e\+18 in row 0, 5.1e\+18 as the network takes it, beyond 1e15"
    with pytest.raises(ValueError, match=message):
        SpelaClassifier(16, standardize=False).fit(frame, Y)
    assert SpelaClassifier(max_iter=30, random_state=0).fit(frame, Y).score(frame, Y) > 0.9
    first = X[:1] * 1e18  # one sample has no deviation yet, so nothing is out of proportion to it
    online = SpelaClassifier(16, random_state=0).partial_fit(first, Y[:1], classes=[0, 1, 2])
    assert np.isfinite(online.partial_fit(1e18 * X, Y).predict_proba(1e18 * X)).all()


def _default_device() -> AbstractContextManager[Any]:
    return torch.device("meta")  # what torch.set_default_device makes of a block


@contextmanager
def _another_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(77)
        yield


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "pandas": lambda: sklearn.config_context(transform_output="pandas"),
    "assume_finite": lambda: sklearn.config_context(assume_finite=True),
    "metadata_routing": lambda: sklearn.config_context(enable_metadata_routing=True),
    "default_dtype": lambda: default_dtype(torch.float64),
    "default_device": _default_device,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "errstate": lambda: np.errstate(all="raise"),
    "warnings": warnings_are_errors,
    "seed": _another_seed,
}


def _answers(x: np.ndarray) -> list[np.ndarray]:
    whole = SpelaClassifier(np.array([16, 8]), max_iter=4, early_stopping=True, random_state=0)
    whole.fit(x, Y)
    online = SpelaClassifier(16, random_state=0).partial_fit(x, Y, classes=[0, 1, 2])
    online.partial_fit(x, Y)
    return [
        answer
        for model in (whole, online)
        for answer in (
            model.predict(x),
            model.decision_function(x),
            model.predict_proba(x),
            model.net_[0].weight.detach().numpy().copy(),
        )
    ]


@pytest.mark.parametrize("name", SETTINGS)
def test_global_settings_change_nothing(name: str) -> None:
    # A feature near the smallest numbers underflows wherever something squares it.
    x = X * [1, 1, 1e-200, 1]
    expected = _answers(x)
    with SETTINGS[name]():
        state = torch.get_rng_state()
        found = _answers(x)
        assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps", "xpu"])
def test_no_device_casts_to_16_bits(device: str) -> None:
    before = torch.is_autocast_enabled(device)
    torch.set_autocast_enabled(device, True)
    try:
        with plain_mode():
            assert not torch.is_autocast_enabled(device)
        assert torch.is_autocast_enabled(device)
    finally:
        torch.set_autocast_enabled(device, before)


def test_a_model_of_one_mode_works_in_another() -> None:
    for inside, outside in (
        (torch.inference_mode, nullcontext),
        (nullcontext, torch.inference_mode),
    ):
        with inside():
            model = _online()
        with outside(), _changes_nothing(model):
            pass


def test_nan_is_refused_where_scikit_learn_does_not_look() -> None:
    model = _online()
    with _changes_nothing(model), sklearn.config_context(assume_finite=True):
        with pytest.raises(ValueError, match="feature 2 of X is nan in row 3"):
            model.partial_fit(_with(np.nan), Y[:5])
        with pytest.raises(ValueError, match="feature 2 of X is nan in row 3"):
            model.predict(_with(np.nan))


def test_settings_of_the_program_stay_as_they_were() -> None:
    before = (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())
    errors, config = np.geterr(), sklearn.get_config()
    _online().predict(X)
    assert before == (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())
    assert np.geterr() == errors
    assert sklearn.get_config() == config


@pytest.mark.parametrize(
    "sizes", [np.array([16, 8]), [np.int64(16), np.int32(8)], (16, 8), range(16, 7, -8)]
)
def test_sizes_of_any_integers(sizes: Any) -> None:
    model = SpelaClassifier(sizes, max_iter=2, random_state=0).fit(X, Y)
    assert [layer.out_features for layer in model.net_.local_layers] == [16, 8]
    expected = SpelaClassifier((16, 8), max_iter=2, random_state=0).fit(X, Y)
    np.testing.assert_array_equal(model.predict_proba(X), expected.predict_proba(X))


def test_numbers_of_numpy_as_parameters() -> None:
    plain = {
        "hidden_layer_sizes": 16,
        "scale": 16.0,
        "learning_rate": 0.25,
        "batch_size": 30,
        "max_iter": 3,
        "tol": 0.125,
        "n_iter_no_change": 5,
        "validation_fraction": 0.25,
        "random_state": 3,
    }
    numpy = {
        name: np.int32(value) if isinstance(value, int) else np.float32(value)
        for name, value in plain.items()
    }
    expected = SpelaClassifier(**plain, early_stopping=True).fit(X, Y).predict_proba(X)
    found = SpelaClassifier(**numpy, early_stopping=np.bool_(True)).fit(X, Y).predict_proba(X)
    np.testing.assert_array_equal(expected, found)
    alone = SpelaClassifier(np.array(16), max_iter=1, random_state=0).fit(X, Y)
    assert [layer.out_features for layer in alone.net_.local_layers] == [16]


def test_frames_and_series() -> None:
    frame = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    names = pandas.Series(np.array(["x", "y", "z"])[Y], index=range(1000, 1150))
    expected = SpelaClassifier(16, max_iter=5, random_state=0).fit(X, names.to_numpy())
    for labels in (names, names.astype("category"), names.astype("string")):
        model = SpelaClassifier(16, max_iter=5, random_state=0).fit(frame, labels)
        np.testing.assert_array_equal(model.predict_proba(frame), expected.predict_proba(X))
        assert model.predict(frame).tolist() == expected.predict(X).tolist()
    online = SpelaClassifier(16, random_state=0).partial_fit(frame, names, classes=names.unique())
    assert online.classes_.tolist() == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ma.masked_less(X, 1), "X has masked values, which would count as numbers"),
        (X.astype("m8[s]"), "X has times or dates"),
        (pandas.DataFrame(X).astype({2: "M8[ns]"}), "X has times or dates"),
        ([[np.timedelta64(int(v), "h") for v in row] for row in X], "X has times or dates"),
        (np.array([[*r[:3], np.timedelta64(1, "h")] for r in X], object), "X has times or dates"),
        ([[*row[:3], np.datetime64("2020")] for row in X.tolist()], "X has times or dates"),
    ],
    ids=["masked", "times", "dates in a frame", "times in lists", "objects", "a date in lists"],
)
def test_what_float64_would_drop_is_refused(x: Any, message: str) -> None:
    model = _online()
    with _changes_nothing(model):
        for call in (lambda: model.partial_fit(x, Y), lambda: model.predict(x)):
            with pytest.raises(ValueError, match=message):
                call()


def test_nullable_booleans_stay_booleans() -> None:
    y = pandas.Series(Y == 1, dtype="boolean")
    model = SpelaClassifier(8, max_iter=2, random_state=0).fit(X, y)
    assert model.classes_.dtype == bool
    assert model.predict(X).dtype == bool
    online = SpelaClassifier(8, random_state=0).partial_fit(X, y, classes=[False, True])
    assert online.classes_.tolist() == model.classes_.tolist() == [False, True]


def test_masked_labels_are_refused() -> None:
    model = _online()
    with (
        _changes_nothing(model),
        pytest.raises(ValueError, match="y has masked labels, which would count as classes"),
    ):
        model.partial_fit(X, np.ma.masked_equal(Y, 1))


def test_large_whole_labels_stay_apart() -> None:
    ids = 2**53 + Y
    for y in (ids, pandas.Series(ids, dtype="Int64")):
        model = SpelaClassifier(16, max_iter=2, random_state=0).fit(X, y)
        assert model.classes_.tolist() == [2**53, 2**53 + 1, 2**53 + 2]
    with pytest.raises(ValueError, match=f"labels that are not in classes: .{2**53 + 1}."):
        SpelaClassifier(16).partial_fit(X, ids, classes=np.array([2.0**53, 2.0**53 + 2]))


@pytest.mark.parametrize("sizes", [1, (8, 1)])
def test_a_layer_of_one_output_is_refused(sizes: Any) -> None:
    with pytest.raises(ValueError, match=r"hidden_layer_sizes must hold .* all at least 2"):
        SpelaClassifier(sizes).fit(X, Y)


@pytest.mark.parametrize("many", [50, 1200])
def test_one_more_sample_leaves_the_temperature_of_a_fit(many: int) -> None:
    draw = np.random.default_rng(0)
    y = np.sort(draw.integers(3, size=many))  # as files sorted by class come
    x = draw.normal(size=(many, 4)) + 2 * np.eye(3, 4)[y]
    model = SpelaClassifier(16, max_iter=30, random_state=0).fit(x, y)
    before = model.temperature_
    model.partial_fit(x[:1], [(y[0] + 1) % 3])
    assert model.temperature_ == pytest.approx(before, rel=0.2)
    classes = model._recent[1].bincount(minlength=3)
    assert classes.min() > 0.25 * min(many, 1000) / 1.2


def test_an_array_that_could_mask_and_does_not_is_an_array() -> None:
    model = _online()
    whole = np.ma.masked_less(X, -1)
    np.testing.assert_array_equal(model.predict_proba(whole), model.predict_proba(X))


def test_names_come_through_set_output_and_are_held_to() -> None:
    frame = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    scaled = make_pipeline(MinMaxScaler(), SpelaClassifier(16, max_iter=3, random_state=0))
    plain = scaled.fit(frame, Y).predict_proba(frame)
    assert not hasattr(scaled[-1], "feature_names_in_")
    scaled.set_output(transform="pandas").fit(frame, Y)
    assert scaled[-1].feature_names_in_.tolist() == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(scaled.predict_proba(frame), plain)
    with pytest.raises(ValueError, match="feature names should match"):
        scaled[-1].predict(frame[["b", "a", "c", "d"]])


def test_weights_of_samples_are_no_argument_and_scikit_learn_says_so() -> None:
    weights = np.ones(len(Y))
    with pytest.raises(TypeError, match="sample_weight"):
        SpelaClassifier().fit(X, Y, sample_weight=weights)
    boosted = AdaBoostClassifier(SpelaClassifier(8, max_iter=1), n_estimators=2)
    with pytest.raises(ValueError, match="SpelaClassifier doesn't support sample_weight"):
        boosted.fit(X, Y)


def test_joblib_brings_all_of_it_back(tmp_path: Path) -> None:
    """What the documentation says to save it with; nothing of ours ever loads one."""
    joblib = importlib.import_module("joblib")
    model = SpelaClassifier(16, max_iter=3, random_state=0).fit(X, np.array(["x", "y", "z"])[Y])
    joblib.dump(model, tmp_path / "model.joblib")
    loaded = joblib.load(tmp_path / "model.joblib")
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    for one in (model, loaded):
        one.partial_fit(X, np.array(["x", "y", "z"])[Y])
    np.testing.assert_array_equal(loaded.decision_function(X), model.decision_function(X))


def test_a_step_that_makes_weights_infinite_is_an_error_that_leaves_the_model() -> None:
    model = SpelaClassifier(8, random_state=0).partial_fit(X, Y, classes=[0, 1, 2])
    before = model.predict_proba(X)
    with pytest.raises(TrainingDivergedError, match="lower the learning rate"):
        model.set_params(learning_rate=3e38).partial_fit(X, Y)
    np.testing.assert_array_equal(model.predict_proba(X), before)


def test_a_call_costs_as_much_whatever_the_number_of_calls_before() -> None:
    model = SpelaClassifier(8, random_state=0).partial_fit(X[:1], Y[:1], classes=[0, 1, 2])
    curve = model.loss_curve_
    curve.extend([Uncopied()] * 3)  # type: ignore[list-item]
    model.partial_fit(X[:1], Y[:1])
    assert len(model.loss_curve_) == 5


class Uncopied(float):
    def __deepcopy__(self, memo: object) -> object:
        raise AssertionError("a curve's numbers are not copied one by one")
