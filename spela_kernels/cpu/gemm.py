"""Dense products of a layer on the CPU, by the fastest of two libraries in torch and passes of our own.

`blas` is torch.addmm (MKL in the wheels for x86), whose `beta` makes the update of a weight the product's own
epilogue. `onednn` is torch's internal op for Inductor, which fuses bias and activation into the product; a
weight's update is then a pass of its own. `compiled` (`products`) fuses bias and LeakyReLU, and the update.
Which is fastest depends on processor and shape: `gemm_choice` measures. Axes: B batch, I in, O out.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor

from spela_kernels.activations import get_activation
from spela_kernels.cpu import products
from spela_kernels.cpu.gemm_choice import choose_library, pinned_library
from spela_kernels.rules import AdamRule, SgdRule, Step, fused_update_

__all__ = [
    "add_product_",
    "libraries_here",
    "linear",
    "onednn_works",
    "product",
    "update_product_",
]

_logger = logging.getLogger(__name__)
# What oneDNN can apply to the product before it is stored, under the names of the internal op. Not its relu:
# it makes a NaN 0, and the loss would stay finite.
_FUSED = {
    "leaky_relu": ("leaky_relu", ""),
    "tanh": ("tanh", ""),
    "identity": ("none", ""),
}


@functools.cache
@torch.no_grad()
def onednn_works() -> bool:
    """Whether torch's internal fused linear op is here and gives right results; looked at once."""
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):
        return False
    own: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever torch's defaults are
    x, weight = torch.linspace(-1, 1, 15, **own).view(5, 3), torch.eye(7, 3, **own)
    bias = torch.arange(7.0, **own) - 3
    try:
        fused = _onednn(x, weight, bias, "leaky_relu", 0.25)
        turned = _onednn(x.T, fused.T, None, "identity", 0.0)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        _logger.warning("spela_kernels: oneDNN's fused product is not used: %s", error)
        return False
    plain = torch.nn.functional.leaky_relu(x @ weight.T + bias, 0.25)
    pairs = ((fused, plain), (turned, x.T @ plain))
    right = all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in pairs)
    if not right:
        _logger.warning("spela_kernels: oneDNN's fused product is not used: its results differ")
    return right


def _onednn(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, slope: float
) -> Tensor:
    name, algorithm = _FUSED[activation]
    scalars = [slope] if activation == "leaky_relu" else []
    bias = None if bias is None else bias.contiguous()  # it is read as if it were
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, scalars, algorithm)


@functools.cache
def libraries_here() -> tuple[str, ...]:
    """Who can make products here, of `LIBRARIES`; looked at once.

    Raises:
        ValueError: If SPELA_CPU_GEMM names no library, or one that is not here.
    """
    able = products.fits()
    names = _ABLE[onednn_works(), able]
    pinned = pinned_library()
    if pinned is not None and pinned not in names:
        reason = "torch has no such product here" if pinned == "onednn" else "it was not compiled"
        raise ValueError(
            f"SPELA_CPU_GEMM is {pinned!r}, which cannot make products here ({reason}): use one of "
            f"auto, {', '.join(names)}"
        )
    return names


def _library(kind: str, x: Tensor, rows: Tensor, able: bool) -> str:
    """Who makes a product of `x` (B, I) and `rows`, (O, I) of a linear layer or else (B, O).

    Only packed float32 rows have a choice: 16-bit products reach oneDNN through torch.addmm as well. `able`:
    whether the compiled pass takes it.
    """
    if x.dtype != torch.float32 or rows.dtype != torch.float32:
        return "blas"
    if not (x.is_contiguous() and rows.is_contiguous()):
        return "blas"
    names = _ABLE["onednn" in libraries_here(), able]
    outputs = rows.shape[0] if kind == "linear" else rows.shape[1]
    return choose_library(kind, x.shape[0], x.shape[1], outputs, _CANDIDATES[kind], names)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, slope: float | Tensor
) -> tuple[Tensor, Tensor]:
    """phi(x W^T + b), the activation inside the product where the library can.

    Args:
        x: (B, I) float.
        weight: (O, I) in the dtype of x.
        bias: (O,) or None, likewise.
        activation: A name from `ACTIVATIONS`; None: the product alone.
        slope: Of leaky_relu (a number) or prelu (a tensor).

    Returns:
        y (B, O), and z (B, O) where phi' needs it, else y again.

    Example:
        >>> y, _ = linear(torch.ones(1, 2), torch.eye(2), None, "leaky_relu", 0.1)
        >>> y
        tensor([[1., 1.]])
    """
    phi = None if activation is None else get_activation(activation)
    # What a library applies under this name; a row that is not in the kernels is left to its function.
    name = "identity" if phi is None else phi.name if phi.in_kernels else ""
    library = _library("linear", x, weight, products.linear_fits(x, weight, bias))
    if library == "onednn":
        z = _onednn(x, weight, bias, name if name in _FUSED else "identity", float(slope))
        if name in _FUSED:
            return z, z
    elif library == "compiled":
        leaky = name == "leaky_relu"
        z = products.linear(x, weight, bias, float(slope) if leaky else 1.0)
        if leaky or name == "identity":
            return z, z
    else:
        z = torch.nn.functional.linear(x, weight, bias)
        if name == "leaky_relu":
            y = torch.nn.functional.leaky_relu_(z, float(slope))
            return y, y
    if name == "relu":
        z.relu_()
        return z, z
    if phi is None:
        return z, z
    y = phi.forward(z, slope)
    return y, z if phi.needs_input else y


def product(dz: Tensor, x: Tensor) -> Tensor:
    """dz^T x: the weight gradient (O, I) from dz (B, O) and x (B, I).

    Example:
        >>> product(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]))
        tensor([[3.],
                [6.]])
    """
    if _library("product", x, dz, False) == "onednn":
        return _onednn(dz.T, x.T, None, "identity", 0.0)
    return dz.T @ x


def add_product_(total: Tensor, dz: Tensor, x: Tensor, *, beta: float, alpha: float) -> None:
    """total = beta * total + alpha * dz^T x, in place: a weight's update inside the second product.

    Args:
        total: (O, I), updated; float32 where dz and x are in 16 bits.
        dz: (B, O) float.
        x: (B, I) in the dtype of dz.
        beta: Factor of what is there, 1 - lr * weight_decay for a plain step.
        alpha: Factor of the product, -lr for a plain step.

    Example:
        >>> weight = torch.ones(1, 1)
        >>> add_product_(weight, torch.ones(2, 1), torch.ones(2, 1), beta=1.0, alpha=-0.25)
        >>> weight
        tensor([[0.5000]])
    """
    library = "onednn"
    if total.dtype == dz.dtype:
        library = _library("update", x, dz, products.fits(x, dz, total))
    if library == "compiled":
        products.sgd_product_(total, dz, x, beta=beta, alpha=alpha)
    elif library == "blas":
        total.addmm_(dz.T, x, beta=beta, alpha=alpha)
    else:
        # oneDNN's own sum would need a copy of the weight, and is slower than product and sum apart.
        if beta != 1:
            total.mul_(beta)
        total.add_(product(dz, x), alpha=alpha)


def update_product_(weight: Tensor, dz: Tensor, x: Tensor, step: Step[Tensor | None]) -> None:
    """An optimizer's update of a weight with the gradient dz^T x, in place; inside the product where it can.

    Args:
        weight: (O, I), updated; float32 where dz and x are in 16 bits.
        dz: (B, O) float.
        x: (B, I) in the dtype of dz.
        step: As in `rules.update_`.

    Example:
        >>> from spela_kernels.rules import SgdRule
        >>> weight, ones, lr = torch.ones(1, 1), torch.ones(2, 1), torch.tensor(0.25)
        >>> update_product_(weight, ones, ones, Step(SgdRule(), lr, None, None))
        >>> weight
        tensor([[0.5000]])
    """
    rule, lr, first, second, _ = step
    buffers = [buffer for buffer in (first, second) if buffer is not None]
    kind = "adam" if isinstance(rule, AdamRule) else "momentum"
    if buffers and _library(kind, x, dz, products.fits(x, dz, weight, *buffers)) == "compiled":
        update_product = products.adam_product_ if kind == "adam" else products.momentum_product_
        return update_product(weight, dz, x, step)
    in_place = weight.dtype == torch.promote_types(dz.dtype, torch.float32)
    if isinstance(rule, SgdRule) and not rule.nesterov and in_place:
        if first is None:
            size = float(lr)
            add_product_(weight, dz, x, beta=1 - size * rule.weight_decay, alpha=-size)
        else:
            add_product_(first, dz, x, beta=rule.momentum, alpha=1.0)
            if rule.weight_decay != 0:
                first.add_(weight, alpha=rule.weight_decay)
            weight.add_(first, alpha=-float(lr))
        return None
    return fused_update_(weight, product(dz, x).to(weight.dtype), step)


def _run_linear(library: str, x: Tensor, weight: Tensor, dz: Tensor) -> None:
    if library == "compiled":
        products.linear(x, weight, None, 0.01)
    elif library == "onednn":
        _onednn(x, weight, None, "leaky_relu", 0.01)
    else:
        torch.nn.functional.leaky_relu_(torch.nn.functional.linear(x, weight), 0.01)


def _run_product(library: str, x: Tensor, weight: Tensor, dz: Tensor) -> None:
    if library == "onednn":
        _onednn(dz.T, x.T, None, "identity", 0.0)
    else:
        torch.mm(dz.T, x)


def _run_update(library: str, x: Tensor, weight: Tensor, dz: Tensor) -> None:
    if library == "compiled":
        products.sgd_product_(weight, dz, x, beta=1.0, alpha=0.01)
    elif library == "onednn":
        weight.add_(_onednn(dz.T, x.T, None, "identity", 0.0), alpha=0.01)
    else:
        weight.addmm_(dz.T, x, alpha=0.01)


def _run_adam(library: str, x: Tensor, weight: Tensor, dz: Tensor) -> None:
    first, second, one = torch.ones_like(weight), torch.ones_like(weight), weight.new_ones(())
    step: Step[Tensor | None] = Step(AdamRule(), one, first, second, one)
    if library == "compiled":
        products.adam_product_(weight, dz, x, step)
        return
    if library == "onednn":
        gradient = _onednn(dz.T, x.T, None, "identity", 0.0)
    else:
        gradient = torch.mm(dz.T, x)
    fused_update_(weight, gradient, step)


def _run_momentum(library: str, x: Tensor, weight: Tensor, dz: Tensor) -> None:
    buffer, rate = torch.ones_like(weight), weight.new_ones(())
    if library == "compiled":
        step: Step[Tensor | None] = Step(SgdRule(momentum=0.5), rate, buffer, None)
        products.momentum_product_(weight, dz, x, step)
        return
    if library == "onednn":
        buffer.mul_(0.5).add_(_onednn(dz.T, x.T, None, "identity", 0.0))
    else:
        buffer.addmm_(dz.T, x, beta=0.5)
    weight.add_(buffer, alpha=-0.01)


_CANDIDATES = {
    "linear": _run_linear,
    "product": _run_product,
    "update": _run_update,
    "momentum": _run_momentum,
    "adam": _run_adam,
}
# By whether oneDNN works and whether the compiled passes take the tensors.
_ABLE = {
    (False, False): ("blas",),
    (True, False): ("blas", "onednn"),
    (False, True): ("blas", "compiled"),
    (True, True): ("blas", "onednn", "compiled"),
}
