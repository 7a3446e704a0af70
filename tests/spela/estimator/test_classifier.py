"""SpelaClassifier beyond scikit-learn's checks: as good as its MLP, calibrated, online, in its tools."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from spela import SpelaClassifier, SpelaSequential
from spela.estimator.calibration import fit_temperature
from spela.optim import LocalAdam

IRIS = load_iris(return_X_y=True)
Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def digits() -> Split:
    x, y = load_digits(return_X_y=True)
    return tuple(train_test_split(x, y, test_size=0.3, random_state=0, stratify=y))


@pytest.fixture(scope="module")
def fitted(digits: Split) -> tuple[SpelaClassifier, float]:
    """A classifier of the digits and the CPU seconds that it took, once torch is warm."""
    SpelaClassifier(max_iter=1).fit(digits[0], digits[2])
    started = time.process_time()
    model = SpelaClassifier(random_state=0).fit(digits[0], digits[2])
    return model, time.process_time() - started


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_as_good_as_the_mlp_of_the_same_layers(
    digits: Split, fitted: tuple[SpelaClassifier, float]
) -> None:
    x, x_test, y, y_test = digits
    model, seconds = fitted
    MLPClassifier((100, 100), max_iter=1).fit(x, y)
    started = time.process_time()
    rival = MLPClassifier((100, 100), random_state=0).fit(x, y)
    theirs = time.process_time() - started
    assert model.score(x_test, y_test) >= rival.score(x_test, y_test) - 0.01
    assert log_loss(y_test, model.predict_proba(x_test)) <= 1.2 * log_loss(
        y_test, rival.predict_proba(x_test)
    )
    # CPU seconds of one thread; measured at twice theirs, the rest is room for a busy machine.
    assert seconds < 6 * theirs


def test_it_trains_the_projects_own_network(fitted: tuple[SpelaClassifier, float]) -> None:
    model = fitted[0]
    assert isinstance(model.net_, SpelaSequential)
    assert isinstance(model.optimizer_, LocalAdam)
    assert len(model.loss_curve_) == model.n_iter_
    assert model.loss_curve_[-1] < 0.1 * model.loss_curve_[0]


def test_probabilities_are_calibrated_on_the_part_held_out(digits: Split) -> None:
    x, x_test, y, y_test = digits
    model = SpelaClassifier(early_stopping=True, random_state=0).fit(x, y)
    probabilities = model.predict_proba(x_test)
    chosen, right = probabilities.max(axis=1), model.predict(x_test) == y_test
    assert abs(chosen.mean() - right.mean()) < 0.03
    loss = log_loss(y_test, probabilities)
    for factor in (0.3, 3.0):
        model.temperature_ *= factor
        assert log_loss(y_test, model.predict_proba(x_test)) > loss
        model.temperature_ /= factor


def test_scores_and_probabilities_agree(
    fitted: tuple[SpelaClassifier, float], digits: Split
) -> None:
    model, x = fitted[0], digits[1]
    decision, probabilities = model.decision_function(x), model.predict_proba(x)
    assert np.abs(decision).max() <= 1
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_array_equal(model.predict(x), model.classes_[probabilities.argmax(axis=1)])
    expected = torch.softmax(torch.from_numpy(decision) / model.temperature_, dim=1)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-9, atol=1e-12)
    alone = np.concatenate([model.decision_function(row[None]) for row in x[:5]])
    np.testing.assert_allclose(decision[:5], alone, rtol=0, atol=1e-12)


def test_early_stopping_keeps_the_best_epoch(digits: Split) -> None:
    x, _, y, _ = digits
    model = SpelaClassifier(
        early_stopping=True, n_iter_no_change=3, max_iter=60, learning_rate=0.05, random_state=2
    ).fit(x, y)
    history = model.validation_scores_
    assert model.n_iter_ == len(history) < 60
    assert history[-1] < max(history)  # or the weights would be the last epoch's anyway
    from spela.estimator.rows import held_out

    _, part, _, labels = held_out(x, y, 0.1, model.seed_)
    assert model.score(part, labels) == max(history)


@pytest.mark.parametrize(
    "names",
    [
        np.array(["setosa", "versicolor", "virginica"]),
        np.array(["c", "a", "b"], dtype=object),
        np.array([-7, 0, 300]),
        np.array([2.0, 1.0, 5.0]),
    ],
    ids=["strings", "objects", "integers", "floats"],
)
def test_any_labels(names: np.ndarray) -> None:
    x, y = IRIS
    model = SpelaClassifier(32, max_iter=30, random_state=0).fit(x, names[y])
    assert model.score(x, names[y]) > 0.9
    np.testing.assert_array_equal(model.classes_, np.unique(names))
    assert model.predict(x).dtype == names.dtype


def test_booleans_are_two_classes() -> None:
    x, y = IRIS
    model = SpelaClassifier(32, max_iter=30, random_state=0).fit(x, y == 1)
    decision = model.decision_function(x)
    assert decision.shape == (150,)
    np.testing.assert_array_equal(model.predict(x), decision > 0)
    assert model.score(x, y == 1) > 0.9


def test_partial_fit_learns_online(digits: Split) -> None:
    x, x_test, y, y_test = digits
    model = SpelaClassifier(random_state=0)
    losses = []
    for _ in range(3):
        for start in range(0, len(x), 100):
            rows = slice(start, start + 100)
            model.partial_fit(x[rows], y[rows], classes=np.arange(10))
        losses.append(log_loss(y_test, model.predict_proba(x_test)))
    assert model.n_iter_ == 3 * 13
    assert model.score(x_test, y_test) > 0.93
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="not those of the first call"):
        model.partial_fit(x, y, classes=[0, 1])
    with pytest.raises(ValueError, match=r"not in classes: \[11\]"):
        model.partial_fit(x[:2], [3, 11])
    with pytest.raises(ValueError, match="first call to partial_fit"):
        SpelaClassifier().partial_fit(x, y)
    with pytest.raises(ValueError, match="classes hold NaN"):
        SpelaClassifier().partial_fit(x, y, classes=[*range(10), math.nan])
    with pytest.raises(ValueError, match="only one class, 4"):
        SpelaClassifier().fit(x[y == 4], y[y == 4])


def test_partial_fit_goes_on_after_fit(digits: Split) -> None:
    x, x_test, y, y_test = digits
    model = SpelaClassifier(random_state=0, max_iter=2).fit(x, y)
    before = model.score(x_test, y_test)
    for _ in range(8):
        model.partial_fit(x, y)
    assert model.n_iter_ == 10
    assert model.score(x_test, y_test) > before


def test_the_temperature_after_fit_is_of_its_samples_and_of_those_scored_before_they_were_learnt(
    digits: Split,
) -> None:
    x, _, y, _ = digits
    model = SpelaClassifier(random_state=0, max_iter=2).fit(x[:500], y[:500])
    new, labels = x[500:], y[500:]
    scores, targets = [torch.from_numpy(model.decision_function(x[:500]))], [y[:500]]
    for _ in range(2):
        twin = copy.deepcopy(model)
        twin.scaler_.partial_fit(new)  # before anything is scored
        scores.append(torch.from_numpy(twin.decision_function(new)))
        targets.append(labels)
        model.partial_fit(new, labels)
        recent = torch.cat(scores), torch.from_numpy(np.concatenate(targets))
        kept = tuple(part[-1000 - len(labels) :] for part in recent)
        assert model.temperature_ == pytest.approx(fit_temperature(*kept), rel=1e-6)


def test_settings_and_classes_of_other_types_count_the_same() -> None:
    x, y = IRIS
    plain = SpelaClassifier(16, max_iter=3, random_state=0, batch_size=100).fit(x, y)
    for size in (np.uint8(100), np.int64(100)):  # 150 samples do not fit into 8 bits
        other = SpelaClassifier(16, max_iter=3, random_state=0, batch_size=size).fit(x, y)
        np.testing.assert_array_equal(other.decision_function(x), plain.decision_function(x))
    found = [
        SpelaClassifier(16, random_state=0, batch_size=size).partial_fit(x, y, classes=classes)
        for size, classes in ((100, [0, 1, 2]), (np.uint8(100), {2, 0, 1}))
    ]
    np.testing.assert_array_equal(*(one.decision_function(x) for one in found))


def test_the_seed_decides_and_torchs_generator_is_left_alone() -> None:
    x, y = IRIS
    state = torch.get_rng_state()
    first, again, other = (
        SpelaClassifier(16, max_iter=3, random_state=s).fit(x, y).decision_function(x)
        for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def _through_pickle(model: Any) -> Any:
    """What a user's own pickling gives back; nothing of ours ever loads one."""
    import pickle

    return pickle.loads(pickle.dumps(model))


def test_clone_pipeline_search_and_pickle() -> None:
    x, y = IRIS
    pipeline = make_pipeline(MinMaxScaler(), SpelaClassifier(32, max_iter=30, random_state=0))
    assert cross_val_score(pipeline, x, y, cv=3).mean() > 0.8
    search = GridSearchCV(
        SpelaClassifier(16, max_iter=5, random_state=0),
        {"learning_rate": [1e-6, 1e-2], "objective": ["softmax", "log"]},
        cv=2,
    ).fit(x, y)
    assert search.best_params_["learning_rate"] == 1e-2
    model = search.best_estimator_
    copied = clone(model)
    assert copied.get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        copied.predict(x)
    loaded = _through_pickle(model)
    np.testing.assert_array_equal(loaded.predict_proba(x), model.predict_proba(x))
    # The optimizer comes along: both go on alike.
    for one in (model, loaded):
        one.partial_fit(x, y)
    np.testing.assert_array_equal(loaded.decision_function(x), model.decision_function(x))


def test_progress_is_optional(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = IRIS
    SpelaClassifier(8, max_iter=2, random_state=0).fit(x, y)
    assert capsys.readouterr() == ("", "")
    SpelaClassifier(8, max_iter=2, random_state=0, verbose=True).fit(x, y)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2/2" in captured.err
    assert "loss=" in captured.err


def test_features_are_standardised_unless_told_not_to() -> None:
    x, y = IRIS
    odd = x * [1e6, 1e-6, 1, 1] + [0, 0, 1e3, -1e3]
    model = SpelaClassifier(32, max_iter=30, random_state=0)
    assert model.fit(odd, y).score(odd, y) > 0.9
    raw = SpelaClassifier(32, max_iter=30, random_state=0, standardize=False)
    assert raw.fit(odd, y).score(odd, y) < 0.8
    assert raw.scaler_ is None


@pytest.mark.parametrize(("classes", "scale"), [(2, 5.0), (4, 8.0), (30, 20.0)])
def test_the_scale_goes_by_the_number_of_classes(classes: int, scale: float) -> None:
    x, y = np.random.default_rng(0).normal(size=(60, 5)), np.arange(60) % classes
    for model in (
        SpelaClassifier(8, max_iter=1, random_state=0).fit(x, y),
        SpelaClassifier(8, random_state=0).partial_fit(x[:2], y[:2], classes=np.arange(classes)),
    ):
        assert [layer.scale for layer in model.net_.local_layers] == [scale]
    assert SpelaClassifier(8, max_iter=1, scale=3).fit(x, y).net_.local_layers[0].scale == 3.0


WRONG = {
    "hidden_layer_sizes": ((), "hidden_layer_sizes must hold at least one size"),
    "objective": ("hinge", "hinge"),
    "activation": ("step", "unknown activation 'step'"),
    "hidden_layer_sizes as a fraction": ((5.5,), "all at least 2, got \\(5.5,\\)"),
    "hidden_layer_sizes as nothing": (None, "must hold at least one size"),
    "scale": (0.0, r"scale must be a number in \(0, 3.40282e\+38\) or 'auto', got 0.0"),
    "scale as text": ("some", r"in \(0, 3.40282e\+38\) or 'auto', got 'some'"),
    "input_dropout": (1.0, r"input_dropout must be a number in \[0, 1\) or 'auto', got 1.0"),
    "input_dropout as text": ("some", r"in \[0, 1\) or 'auto', got 'some'"),
    "learning_rate": (-1.0, r"learning_rate must be a number in \(0, 3.40282e\+38\), got -1.0"),
    "learning_rate beyond float32": (1e39, r"learning_rate must be a number in .*, got 1e\+39"),
    "learning_rate as text": (
        "a",
        r"learning_rate must be a number in \(0, 3.40282e\+38\), got 'a'",
    ),
    "batch_size": (0, "batch_size must be a whole number of at least 1 or 'auto', got 0"),
    "batch_size as text": ("all", "at least 1 or 'auto', got 'all'"),
    "batch_size as a fraction": (10.5, "at least 1 or 'auto', got 10.5"),
    "max_iter": (0, "max_iter must be a whole number of at least 1, got 0"),
    "max_iter as a fraction": (2.5, "max_iter must be a whole number of at least 1, got 2.5"),
    "n_iter_no_change": (
        0,
        "n_iter_no_change must be a whole number of at least 1 or infinity, got 0",
    ),
    "validation_fraction": (1.0, r"validation_fraction must be a number in \(0, 1\), got 1.0"),
    "tol": (float("nan"), "tol must be a number, got nan"),
    "early_stopping": ("False", "early_stopping must be True or False, got 'False'"),
    "standardize": (1, "standardize must be True or False, got 1"),
    "verbose": ("x", "verbose must be True, False or a whole number of at least 0, got 'x'"),
    "device": ("foo", "device 'foo': "),
    "device that is not there": (99, "device 99: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_parameters_are_named(name: str) -> None:
    value, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        SpelaClassifier(**{name.split()[0]: value}).fit(*IRIS)


def test_numbers_beyond_float32_are_refused() -> None:
    x, y = IRIS
    with pytest.raises(ValueError, match="beyond float32"):
        SpelaClassifier(4, max_iter=2, standardize=False).fit(1e300 * x, y)


def test_importing_spela_does_not_import_scikit_learn() -> None:
    code = "import sys, spela; assert 'sklearn' not in sys.modules; spela.SpelaClassifier()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize("how", ["series", "frame", "classes"])
def test_whole_numbers_of_pandas_stay_apart_however_they_come(how: str) -> None:
    pandas = pytest.importorskip("pandas")
    x, y = load_iris(return_X_y=True)
    ids = pandas.Series(y, dtype="Int64") + 2**53  # neighbours are one number as floats
    model = SpelaClassifier(max_iter=2, random_state=0)
    if how == "classes":
        model.partial_fit(x, ids, classes=ids.unique())
    else:
        model.fit(x, ids if how == "series" else pandas.DataFrame({"y": ids}))
    assert model.classes_.tolist() == [2**53, 2**53 + 1, 2**53 + 2]
    booleans = pandas.Series(y > 0, dtype="boolean")
    model = SpelaClassifier(random_state=0).partial_fit(x, booleans, classes=booleans.unique())
    assert model.classes_.tolist() == [False, True]
    assert model.classes_.dtype == bool


def test_classes_may_be_any_labels_of_one_axis() -> None:
    x, y = load_iris(return_X_y=True)
    model = SpelaClassifier(random_state=0).partial_fit(
        x, y, classes=dict.fromkeys(range(3)).keys()
    )
    assert model.classes_.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"classes must be \(C,\).*got \(3, 1\)"):
        SpelaClassifier().partial_fit(x, y, classes=[[0], [1], [2]])
