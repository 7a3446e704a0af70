"""SPELA as a scikit-learn classifier."""

from spela.estimator.classifier import SpelaClassifier

__all__ = ["SpelaClassifier"]
