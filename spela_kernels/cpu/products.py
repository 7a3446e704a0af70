"""A linear layer's two products in compiled passes of our own (`products.c`), where built.

Axes: B batch, O out, I in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spela_kernels.cpu.sources import built_module
from spela_kernels.rules import AdamRule, SgdRule, Step, rates_of

__all__ = ["adam_product_", "fits", "linear", "linear_fits", "momentum_product_", "sgd_product_"]

_products: Any = built_module("spela_kernels.cpu._products")


def fits(*tensors: Tensor) -> bool:
    """Whether the passes were built and take these tensors: float32, rows packed.

    Args:
        *tensors: Of any shape.

    Example:
        >>> fits(torch.ones(2, 3), torch.ones(2, 4).double())
        False
    """
    packed = [tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors]
    return _products is not None and all(packed)


def linear_fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `linear` takes these tensors: as `fits`, and enough outputs for a tile.

    Args:
        x: (B, I).
        weight: (O, I).
        bias: (O,) or None.

    Example:
        >>> linear_fits(torch.ones(9, 4), torch.ones(1, 4), None)
        False
    """
    if not (fits(x, weight) if bias is None else fits(x, weight, bias)):
        return False
    return bool(weight.shape[0] >= _products.FEWEST)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, slope: float) -> Tensor:
    """LeakyReLU(x W^T + b).

    Args:
        x: (B, I) float32; as the others, `linear_fits` has taken it.
        weight: (O, I) float32.
        bias: (O,) float32 or None.
        slope: Below zero; 1 for no activation.

    Returns:
        (B, O).

    Example:
        >>> x, eye = torch.tensor([[3.0, -4.0, 0.0, 0.0, 0.0, 1.0]]), torch.eye(6)
        >>> if linear_fits(x, eye, None):
        ...     assert linear(x, eye, None, 0.5).tolist() == [[3.0, -2.0, 0.0, 0.0, 0.0, 1.0]]
    """
    y, outputs = x.new_empty(x.shape[0], weight.shape[0]), weight.shape[0]
    sizes, scratch = _sizes(x, outputs)
    _products.linear(
        *sizes, scratch.data_ptr(), x.data_ptr(), weight.data_ptr(),
        0 if bias is None else bias.data_ptr(), slope, y.data_ptr(),
    )  # fmt: skip
    return y


def _sizes(x: Tensor, outputs: int) -> tuple[tuple[int, ...], Tensor]:
    """What a call begins with, and scratch memory for it: of torch's, so that it is counted and reused."""
    batch, inputs = x.shape
    shape = _products.WIDEST, batch, outputs, inputs
    return (*shape, torch.get_num_threads()), x.new_empty(_products.scratch(*shape))


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
    sizes, scratch = _sizes(x, dz.shape[1])
    _products.sgd(
        *sizes, scratch.data_ptr(), dz.data_ptr(), x.data_ptr(), weight.data_ptr(), beta, alpha
    )


def momentum_product_(weight: Tensor, dz: Tensor, x: Tensor, step: Step[Tensor | None]) -> None:
    """torch.optim.SGD's update of a weight with momentum, of the gradient dz^T x, in place.

    Args:
        weight: (O, I) float32, updated; as the others and the step's buffer, `fits` has taken it.
        dz: (B, O) float32.
        x: (B, I) float32.
        step: Of an `SgdRule` with momentum, as in `rules.update_`.

    Source: torch.optim.SGD; `rules.update_`.

    Example:
        >>> weight, buffer, ones = torch.ones(1, 1), torch.ones(1, 1), torch.ones(2, 1)
        >>> step = Step(SgdRule(momentum=0.5), torch.tensor(0.25), buffer, None)
        >>> if fits(ones, weight, buffer):
        ...     momentum_product_(weight, ones, ones, step)
        ...     assert (buffer, weight) == (2.5, 0.375)
    """
    rule, lr, first, _, _ = step
    assert isinstance(rule, SgdRule)
    assert first is not None
    sizes, scratch = _sizes(x, dz.shape[1])
    _products.momentum(
        *sizes, scratch.data_ptr(), dz.data_ptr(), x.data_ptr(), weight.data_ptr(),
        first.data_ptr(), float(lr), rule.momentum, rule.weight_decay, rule.nesterov,
    )  # fmt: skip


def adam_product_(weight: Tensor, dz: Tensor, x: Tensor, step: Step[Tensor | None]) -> None:
    """torch.optim.Adam's update of a weight with the gradient dz^T x, in place.

    Args:
        weight: (O, I) float32, updated; as the others and the step's two moments, `fits` has taken it.
        dz: (B, O) float32.
        x: (B, I) float32.
        step: Of an `AdamRule`, as in `rules.update_`.

    Source: torch.optim.Adam; `rules.update_`.

    Example:
        >>> weight, first, second = torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1, 1)
        >>> step = Step(AdamRule(), torch.tensor(0.25), first, second, torch.tensor(1.0))
        >>> if fits(torch.ones(2, 1), weight):
        ...     adam_product_(weight, torch.ones(2, 1), torch.ones(2, 1), step)
        ...     assert weight == 0.75
    """
    rule, lr, first, second, number = step
    assert isinstance(rule, AdamRule)
    assert first is not None
    assert second is not None
    assert number is not None
    rate, spread = rates_of(rule, float(lr), float(number))
    sizes, scratch = _sizes(x, dz.shape[1])
    _products.adam(
        *sizes, scratch.data_ptr(), dz.data_ptr(), x.data_ptr(),
        weight.data_ptr(), first.data_ptr(), second.data_ptr(),
        1 - rule.beta1, 1 - rule.beta2, rate, spread, rule.eps, rule.weight_decay,
    )  # fmt: skip
