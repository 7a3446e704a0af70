"""Minima of a function of unit vectors: Coulomb energy, or stress against given distances.

Axes: S starts, N vectors, d their dimension; float64 on the CPU.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["Objective", "announce", "best_minimum", "coulomb", "stress", "unit_rows"]

# (N, d) unit rows -> (value, gradient with respect to the rows up to a radial part)
Objective = Callable[[Tensor], tuple[float, Tensor]]

# Every start gets a short run, only the best one a long one: a local minimum shows its rank within
# a few hundred steps, the last digits take thousands.
_SHORT_RUN = 200
# Multiply-adds that all runs together may take, some seconds of a core; up to 200 vectors need fewer.
_MOST_WORK = 1.5e10
_SLOW_WORK = 3e9
_BLOCK_ROWS = 256  # pairs are formed 256 x N at a time: stays in cache, and memory grows as N only
_MIN_SQUARED = 1e-15  # keeps pairs that round to coincident finite

_logger = logging.getLogger(__name__)


def unit_rows(vectors: Tensor) -> Tensor:
    """Return rows (N, d) of length 1."""
    return vectors / vectors.norm(dim=1, keepdim=True)


def coulomb(vectors: Tensor) -> tuple[float, Tensor]:
    """Return the Coulomb energy of unit rows (N, d) and its gradient, less its radial part."""
    energy = torch.zeros((), dtype=torch.float64, device="cpu")
    gradient = torch.empty_like(vectors)
    for start in range(0, vectors.shape[0], _BLOCK_ROWS):
        rows = vectors[start : start + _BLOCK_ROWS]
        squared = torch.mm(rows, vectors.T).mul_(-2.0).add_(2.0).clamp_(min=_MIN_SQUARED)
        squared.diagonal(start).fill_(math.inf)
        inverse = squared.rsqrt_()
        energy += inverse.sum()
        # dE/dv_i = -sum_j (v_i - v_j) / r_ij^3, and its v_i part is radial
        cubed = inverse.square().mul_(inverse)
        torch.mm(cubed, vectors, out=gradient[start : start + _BLOCK_ROWS])
    return 0.5 * energy.item(), gradient


def stress(vectors: Tensor, distances: Tensor) -> tuple[float, Tensor]:
    """Return sum_{i<j} (|v_i - v_j| - D_ij)^2 and its gradient, less its radial part."""
    squared = torch.mm(vectors, vectors.T).mul_(-2.0).add_(2.0).clamp_(min=_MIN_SQUARED)
    squared.fill_diagonal_(_MIN_SQUARED)
    error = squared.sqrt().sub_(distances)
    error.fill_diagonal_(0.0)
    return 0.5 * error.square().sum().item(), torch.mm(error * squared.rsqrt(), vectors).mul_(-2.0)


def announce(count: int, dim: int, work: float) -> None:
    """Say in the log that so many multiply-adds take longer than a second."""
    if work > _SLOW_WORK:
        _logger.warning("placing %s class vectors in %s dimensions takes some seconds", count, dim)


def best_minimum(objective: Objective, starts: Tensor) -> Tensor:
    """Return the unit rows (N, d) of the lowest minimum reached from ``starts`` (S, N, d).

    Many vectors get few steps, and from some 12,000 in 64 dimensions on none: their random start is close to
    the minimum's energy already.
    """
    count, dim = starts.shape[1:]
    step = count * count * (dim + 30.0)  # the pairs' products, and their elementwise work
    # Up to 800 vectors this is the limit on steps that L-BFGS needs, beyond it the work.
    short, long = _SHORT_RUN, max(500, 400_000 // count)
    share = min(1.0, _MOST_WORK / (step * (short * len(starts) + long)))
    short, long = int(short * share), int(long * share)
    announce(count, dim, step * (short * len(starts) + long))
    if long == 0:
        return unit_rows(starts[0])
    runs = [_minimise(objective, start, short) for start in starts] if len(starts) > 1 else []
    best = min(runs, key=lambda run: run[0])[1] if runs else starts[0]
    return _minimise(objective, best, long)[1]


def _minimise(objective: Objective, start: Tensor, max_steps: int) -> tuple[float, Tensor]:
    """Return the value and unit rows where L-BFGS ends; the sphere is kept as v = x/|x|."""
    from scipy.optimize import minimize  # here: few sizes need it, and it loads slowly

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        points = torch.from_numpy(flat).view(start.shape)
        lengths = points.norm(dim=1, keepdim=True)
        rows = points / lengths
        value, gradient = objective(rows)
        tangent = gradient - (gradient * rows).sum(dim=1, keepdim=True) * rows
        return value, (tangent / lengths).view(-1).numpy()

    options = {"maxiter": max_steps, "maxfun": 2 * max_steps, "ftol": 1e-14, "gtol": 1e-10}
    found = minimize(
        evaluate, start.reshape(-1).numpy(), jac=True, method="L-BFGS-B", options=options
    )
    return float(found.fun), unit_rows(torch.from_numpy(found.x).view(start.shape))
