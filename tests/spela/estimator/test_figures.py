"""What the estimator computes, each figure by an independent way."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris

from spela import SpelaClassifier
from spela.data import epoch_generator
from spela.estimator.calibration import fit_temperature
from spela.estimator.epochs import cosine_rate, train_epochs
from spela.estimator.network import build_rows_network
from spela.estimator.rows import held_out


def test_the_held_out_part_scales_nothing_and_sets_the_temperature() -> None:
    x, y = load_digits(return_X_y=True)
    model = SpelaClassifier(16, early_stopping=True, max_iter=3, random_state=0).fit(x, y)
    kept, part, _, labels = held_out(x, y, 0.1, model.seed_)
    np.testing.assert_allclose(model.scaler_.mean_, kept.mean(axis=0), rtol=1e-9, atol=1e-12)
    scores = torch.from_numpy(model.decision_function(part))
    expected = fit_temperature(scores, torch.tensor(labels))
    assert model.temperature_ == pytest.approx(expected, rel=1e-6)


def test_what_gains_less_than_tol_is_no_gain() -> None:
    x, y = load_iris(return_X_y=True)
    model = SpelaClassifier(16, tol=10.0, n_iter_no_change=3, max_iter=40, random_state=0)
    assert model.fit(x, y).n_iter_ == 4


def test_partial_fit_is_one_pass_at_its_own_rate() -> None:
    x, y = load_iris(return_X_y=True)
    model = SpelaClassifier(16, random_state=0).partial_fit(x, y, classes=[0, 1, 2])
    net, optimizer = copy.deepcopy((model.net_, model.optimizer_))
    model.partial_fit(x, y)
    train_epochs(
        net.float(),
        optimizer,
        torch.tensor(model.scaler_.transform(x)).float(),
        torch.tensor(y),
        batch_size=100,
        generators=[epoch_generator(model.seed_, 1)],
        rate=lambda *_: 5e-3,
    )
    for found, expected in zip(model.net_.parameters(), net.double().parameters(), strict=True):
        assert torch.equal(found, expected)


def test_the_part_held_out_is_drawn_by_the_seed() -> None:
    rows, labels = np.arange(40.0)[:, None], np.arange(40) % 2
    parts = [held_out(rows, labels, 0.2, seed)[1].ravel().tolist() for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


def test_the_rate_falls_within_an_epoch() -> None:
    expected = 0.25 * (1 + math.cos(math.pi * 1.5 / 4))
    assert cosine_rate(0.5, 4, 1, 0, 0.5) == pytest.approx(expected)


def test_an_epochs_loss_is_the_mean_over_its_samples() -> None:
    net = build_rows_network(4, (8, 8), 3, seed=0)
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    target = torch.arange(10) % 3
    (mean,) = train_epochs(  # batches that are not of one size
        net,
        torch.optim.SGD(net.parameters(), lr=0.0),
        x,
        target,
        batch_size=4,
        generators=[torch.Generator().manual_seed(1)],
        rate=lambda *_: 0.0,
    )
    assert mean == pytest.approx(float(net.local_losses(x, target).mean().detach()), rel=1e-6)


def test_the_temperature_of_separated_classes_in_closed_form() -> None:
    # N = 10 samples, C = 2 classes, margins of 1: the label has the probability 1 - 1/(2 (N + 1)) = 21/22.
    scores = torch.eye(2).repeat(5, 1)
    assert fit_temperature(scores, scores.argmax(1)) == pytest.approx(1 / math.log(21), rel=1e-9)


def test_patience_may_be_endless_as_in_scikit_learn() -> None:
    x, y = load_iris(return_X_y=True)
    model = SpelaClassifier(16, tol=10.0, n_iter_no_change=np.inf, max_iter=7, random_state=0)
    assert model.fit(x, y).n_iter_ == 7
