"""scikit-learn's own checks of an estimator, all of them."""

from __future__ import annotations

from typing import Any

from sklearn.utils.estimator_checks import parametrize_with_checks

from spela.estimator import SpelaClassifier


# Fewer epochs than the default, to save time: about 300 small networks are trained here.
@parametrize_with_checks([SpelaClassifier(max_iter=30), SpelaClassifier(early_stopping=True)])
def test_scikit_learns_checks(estimator: SpelaClassifier, check: Any) -> None:
    check(estimator)
