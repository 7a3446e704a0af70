"""A weight's gradient and its update in one compiled pass (`update.c`), where built.

Axes: B batch, O out, I in.
"""

from __future__ import annotations

import contextlib
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from spela_kernels.rules import AdamRule

__all__ = ["adam_product_", "fits", "sgd_product_"]

_update: Any = None
with contextlib.suppress(ImportError):  # no compiler was there at installation
    _update = import_module("spela_kernels._update")


def fits(dz: Tensor, x: Tensor, *updated: Tensor) -> bool:
    """Whether the pass was built and takes these tensors: float32, rows packed.

    Args:
        dz: (B, O).
        x: (B, I).
        *updated: (O, I) each.

    Example:
        >>> fits(torch.ones(2, 3).double(), torch.ones(2, 4), torch.ones(3, 4))
        False
    """
    return _update is not None and all(
        t.dtype == torch.float32 and t.is_contiguous() for t in (dz, x, *updated)
    )


def _sizes(dz: Tensor, x: Tensor) -> tuple[int, ...]:
    (batch, outputs), threads = dz.shape, torch.get_num_threads()
    return _update.WIDEST, batch, outputs, x.shape[1], threads, dz.data_ptr(), x.data_ptr()


def sgd_product_(weight: Tensor, dz: Tensor, x: Tensor, *, beta: float, alpha: float) -> None:
    """weight = beta * weight + alpha * dz^T x, in place.

    Args:
        weight: (O, I) float32, updated; as the others, `fits` has taken it.
        dz: (B, O) float32.
        x: (B, I) float32.
        beta, alpha: Factors of what is there and of the product.

    Example:
        >>> weight, ones = torch.ones(1, 1), torch.ones(2, 1)
        >>> if fits(ones, ones, weight):
        ...     sgd_product_(weight, ones, ones, beta=1.0, alpha=-0.25)
        ...     assert weight == 0.5
    """
    _update.sgd(*_sizes(dz, x), weight.data_ptr(), beta, alpha)


def adam_product_(
    weight: Tensor,
    dz: Tensor,
    x: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: Tensor,
    rule: AdamRule,
) -> None:
    """torch.optim.Adam's update of a weight with the gradient dz^T x, in place.

    Args:
        weight, exp_avg, exp_avg_sq: (O, I) float32, updated; as the others, `fits` has taken them.
        dz: (B, O) float32.
        x: (B, I) float32.
        step: () number of this step, counted from 1.
        lr: () learning rate.
        rule: The other hyper-parameters.

    Source: torch.optim.Adam; `rules.adam_update_`.

    Example:
        >>> weight, first, second = torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1, 1)
        >>> ones, one, lr = torch.ones(2, 1), torch.tensor(1.0), torch.tensor(0.25)
        >>> if fits(ones, ones, weight, first, second):
        ...     adam_product_(weight, ones, ones, first, second, one, lr, AdamRule())
        ...     assert weight == 0.75
    """
    count = float(step)
    _update.adam(
        *_sizes(dz, x), weight.data_ptr(), exp_avg.data_ptr(), exp_avg_sq.data_ptr(),
        1 - rule.beta1, 1 - rule.beta2, float(lr) / (1 - rule.beta1**count),
        (1 - rule.beta2**count) ** -0.5, rule.eps, rule.weight_decay,
    )  # fmt: skip
