"""Temperature of the softmax that turns scores into probabilities."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import softmax
from torch import Tensor

__all__ = ["fit_temperature"]

# 1 / temperature is looked for in this range: cosines within [-1, 1] need no more.
_LEAST, _MOST = 0.1, 1e4


@torch.no_grad()
def fit_temperature(scores: Tensor, target: Tensor) -> float:
    """The T that makes softmax(scores / T) most likely, on smoothed labels.

    The negative log-likelihood is convex in 1/T: its derivative mean(E_p[s] - E_q[s]) is increasing and
    its zero is found by Brent's method. q is the label, less one sample in N + 1 that is spread over all
    classes, so that scores that separate the classes perfectly do not ask for certainty.

    Args:
        scores: (N, C) cosines, or any scores, best of samples that were not trained on.
        target: (N,) int64 labels, on the scores' device.

    Returns:
        T in 1e-4..10.

    Raises:
        ValueError: If there are no samples, the shapes do not fit, or a score is not finite.
        TypeError: If one is no tensor.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2; smoothing
    after Platt, "Probabilistic Outputs for Support Vector Machines", 1999.

    Example:
        >>> scores = torch.eye(4)[[0, 1, 2, 3, 0, 1]]
        >>> sure = fit_temperature(scores, scores.argmax(dim=1))
        >>> sure < fit_temperature(scores, torch.tensor([0, 1, 2, 3, 0, 3]))
        True
    """
    if not isinstance(scores, Tensor) or not isinstance(target, Tensor):
        raise TypeError(
            f"`scores` and `target` must be tensors, got {type(scores).__name__} and "
            f"{type(target).__name__}: use torch.as_tensor"
        )
    if scores.dim() != 2 or target.shape != scores.shape[:1] or len(scores) == 0:
        raise ValueError(
            "`scores` must be (N, C) and `target` (N,) of at least one sample, got "
            f"{tuple(scores.shape)} and {tuple(target.shape)}"
        )
    if not scores.isfinite().all():
        raise ValueError("`scores` must be finite: leave out samples with NaN or infinity")
    s = scores.detach().cpu().double().numpy()
    own = s[np.arange(len(s)), target.cpu().numpy()]
    wanted = (len(s) * own + s.mean(axis=1)) / (len(s) + 1)  # (N,) E_q[s]

    def derivative(power: float) -> float:
        expected = (softmax(math.exp(power) * s, axis=1) * s).sum(axis=1)  # (N,) E_p[s]
        return float((expected - wanted).mean())

    low, high = math.log(_LEAST), math.log(_MOST)
    if derivative(low) >= 0:
        return math.exp(-low)
    if derivative(high) <= 0:
        return math.exp(-high)
    return math.exp(-brentq(derivative, low, high))
