"""Epochs of small data share a call: the same fit as one by one, ended at the same epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris

from spela import SpelaSequential
from spela.estimator import SpelaClassifier, classifier, epochs

X, Y = load_iris(return_X_y=True)


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {"max_iter": 13},
        {"max_iter": 40, "tol": 0.03, "n_iter_no_change": 3},  # ends early
        {"max_iter": 7, "input_dropout": 0.3},
    ],
    ids=["to the end", "ends early", "dropout"],
)
def test_several_epochs_a_call_are_those_one_by_one(
    settings: dict[str, float], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, train = [], classifier.train_epochs

    def counted(*args: object, **named: object) -> list[float]:
        losses = train(*args, **named)  # type: ignore[arg-type]
        counts.append(len(losses))
        return losses

    monkeypatch.setattr(classifier, "train_epochs", counted)
    many = SpelaClassifier((20, 10), random_state=0, **settings).fit(X, Y)  # type: ignore[arg-type]
    assert max(counts) > most
    assert len(counts) < many.n_iter_ == sum(counts)
    monkeypatch.setattr(classifier, "epochs_a_call", lambda *args: most)
    counts.clear()
    few = SpelaClassifier((20, 10), random_state=0, **settings).fit(X, Y)  # type: ignore[arg-type]
    assert max(counts) == most
    assert few.n_iter_ == many.n_iter_
    assert (few.n_iter_ == settings["max_iter"]) is ("tol" not in settings)
    assert few.loss_curve_ == many.loss_curve_
    for ours, theirs in zip(few.net_.parameters(), many.net_.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert np.array_equal(few.decision_function(X), many.decision_function(X))


def test_whoever_watches_or_holds_samples_out_sees_every_epoch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(classifier, "epochs_a_call", lambda *args: pytest.fail("asked for several"))
    for settings in ({"verbose": True}, {"early_stopping": True}):
        model = SpelaClassifier(8, max_iter=3, random_state=0, **settings).fit(X, Y)  # type: ignore[arg-type]
        assert model.n_iter_ == 3
    capsys.readouterr()


def test_batches_of_an_epoch_are_equally_large(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    steps = SpelaSequential.local_steps

    def seen(self: SpelaSequential, x: torch.Tensor, target: torch.Tensor, *rest: Any) -> Any:
        asked.append(rest[1])
        return steps(self, x, target, *rest)

    monkeypatch.setattr(SpelaSequential, "local_steps", seen)
    SpelaClassifier(8, max_iter=2, batch_size=49, random_state=0).fit(
        X, Y
    )  # 3 of them leave 3 rows
    assert [sorted(sizes) for sizes in asked] == [2 * [37] * 2 + 2 * [38] * 2]
    asked.clear()
    monkeypatch.setattr(epochs, "steps_a_call", lambda *args: 3)
    SpelaClassifier(8, max_iter=2, batch_size=49, random_state=0).fit(X, Y)
    assert [sorted(sizes) for sizes in asked] == 2 * [[37, 37, 38], [38]]
