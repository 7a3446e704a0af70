"""The oracle itself: closed-form gradients against autograd and gradcheck in float64, and by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import spela_kernels as sk
from spela_kernels.cosines import NORM_EPS
from tests.spela_kernels.torch_wordings import ACTIVATION, CLASS_LOSS, LABEL_LOSS, SGD


@pytest.fixture(autouse=True, params=["reference", "cpu"])
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """The oracle, and what `auto` takes on a CPU."""
    with sk.use_backend(request.param):
        yield


ROWS, FEATURES, OUTPUTS, CLASSES = 7, 5, 6, 4


def _problem(activation: str, seed: int = 0) -> dict[str, Tensor | None]:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return {
        "x": draw(ROWS, FEATURES),
        "weight": draw(OUTPUTS, FEATURES).requires_grad_(),
        "bias": draw(OUTPUTS).requires_grad_(),
        "slope": torch.full((1,), -0.3, dtype=torch.float64, requires_grad=True)
        if activation == "prelu"
        else None,
        "vectors": torch.nn.functional.normalize(draw(CLASSES, OUTPUTS), dim=1),
        "target": torch.randint(CLASSES, (ROWS,), generator=g),
    }


def _torch_loss(name: str, y: Tensor, vectors: Tensor, target: Tensor, scale: float) -> Tensor:
    if name in CLASS_LOSS:
        unit = torch.nn.functional.normalize(y, dim=1)
        return CLASS_LOSS[name](unit @ vectors.T, target, scale).mean()
    c = torch.nn.functional.cosine_similarity(y, vectors[target], dim=1)
    return LABEL_LOSS[name](c).mean()


@pytest.mark.parametrize("objective", sk.OBJECTIVES)
@pytest.mark.parametrize("activation", sk.ACTIVATIONS)
def test_loss_and_gradients_equal_autograd_of_torch(activation: str, objective: str) -> None:
    p = _problem(activation)
    x, w, b, slope, v, t = p.values()
    leak = x.new_tensor(0.01) if slope is None else slope
    y = ACTIVATION[activation](torch.nn.functional.linear(x, w, b), leak)
    expected = _torch_loss(objective, y, v, t, 3.0)
    parameters = [w, b] + ([] if slope is None else [slope])
    gradients = torch.autograd.grad(expected, parameters)

    loss, out, gradient = sk.linear_gradient(
        x, w, b, v, t, slope=slope, activation=activation, negative_slope=0.01,
        objective=objective, scale=3.0,
    )  # fmt: skip
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out, y.detach(), rtol=1e-12, atol=1e-12)
    for name, ours, theirs in zip(("weight", "bias", "slope"), gradient, gradients, strict=False):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("objective", sk.OBJECTIVES)
@pytest.mark.parametrize("activation", ["leaky_relu", "gelu", "prelu"])
def test_gradcheck_of_the_registered_loss(activation: str, objective: str) -> None:
    p = _problem(activation)
    x, w, b, slope, v, t = p.values()

    def loss(*parameters: Tensor) -> Tensor:
        return sk.linear_loss(
            x, parameters[0], parameters[1], v, t,
            slope=parameters[2] if slope is not None else None,
            activation=activation, objective=objective, scale=3.0,
        )[0]  # fmt: skip

    assert torch.autograd.gradcheck(loss, (w, b) + (() if slope is None else (slope,)))


def test_one_sample_worked_by_hand() -> None:
    # y = (3, 4): |y| = 5, cosine to (1, 0) is 0.6. dL/dy = f'(c)/5 * ((1, 0) - 0.6 (0.6, 0.8)).
    w = torch.tensor([[3.0], [4.0]], dtype=torch.float64)
    v = torch.eye(2, dtype=torch.float64)
    x, t = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])
    expected = {
        "cosine": (-0.6, -1.0),
        "log": (math.log(1.4), -1 / 1.4),
        "mse": (0.16, -0.8),
        "euclidean": (math.log(1 + math.sqrt(0.8)), -1 / ((1 + math.sqrt(0.8)) * math.sqrt(0.8))),
        "angular": (
            math.log(1 + math.acos(0.6) / math.pi),
            -1 / ((1 + math.acos(0.6) / math.pi) * math.pi * 0.8),
        ),
    }
    for objective, (value, slope) in expected.items():
        loss, _, gradient = sk.linear_gradient(
            x, w, None, v, t, objective=objective, activation="identity"
        )
        assert loss.item() == pytest.approx(value, abs=1e-12), objective
        assert gradient.weight.flatten().tolist() == pytest.approx(
            [slope / 5 * 0.64, slope / 5 * -0.48], abs=1e-12
        ), objective


def test_rows_without_direction_score_zero_and_teach_nothing() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64)
    x[1] = torch.tensor([1.0, 2.0, 3.0])
    w = torch.randn(4, 3, dtype=torch.float64)
    v = torch.eye(4, dtype=torch.float64)
    target = torch.tensor([0, 1])
    bias = torch.zeros(4, dtype=torch.float64)
    loss, y, gradient = sk.linear_gradient(x, w, bias, v, target, objective="cosine")
    _, _, alone = sk.linear_gradient(x[1:], w, bias, v, target[1:], objective="cosine")
    assert y[0].norm() < NORM_EPS
    torch.testing.assert_close(gradient.weight, alone.weight / 2)
    torch.testing.assert_close(gradient.bias, alone.bias / 2)
    assert torch.equal(sk.linear_forward(x, w, bias, v)[1][0], torch.zeros(4, dtype=torch.float64))
    assert torch.isfinite(loss)


@pytest.mark.parametrize("objective", ["angular", "euclidean"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_poles_of_the_derivative_stay_finite(objective: str, sign: float) -> None:
    v = torch.eye(3)
    x, t = sign * torch.eye(3)[:1], torch.tensor([0])
    loss, _, gradient = sk.linear_gradient(
        x, torch.eye(3), None, v, t, objective=objective, activation="identity"
    )
    assert torch.isfinite(loss)
    assert gradient.weight.abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_tensors_keep_float32_statistics(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(33, 63, generator=g), torch.randn(65, 63, generator=g) / 8
    v, t = (
        torch.nn.functional.normalize(torch.randn(10, 65, generator=g), dim=1),
        torch.arange(33) % 10,
    )
    args = [a.to(dtype) for a in (x, w)]
    loss, y, gradient = sk.linear_gradient(*args, None, v.to(dtype), t)
    exact, _, exact_gradient = sk.linear_gradient(
        args[0].double(), args[1].double(), None, v.to(dtype).double(), t
    )
    assert loss.dtype == torch.float32
    assert y.dtype == gradient.weight.dtype == dtype
    unit = torch.finfo(dtype).eps
    assert abs(loss.double() - exact) < unit
    error = (gradient.weight.double() - exact_gradient.weight).abs().max()
    assert error < 4 * unit * exact_gradient.weight.abs().max()


def _optimizer_case() -> tuple[Tensor, ...]:
    p = _problem("prelu", seed=3)
    return p["x"], p["weight"], p["bias"], p["slope"], p["vectors"], p["target"]


@pytest.mark.parametrize("options", SGD.values(), ids=SGD)
def test_sgd_step_is_torch_sgd(options: dict[str, Any]) -> None:
    x, *parameters, v, t = _optimizer_case()
    theirs = [p.detach().clone().requires_grad_() for p in parameters]
    ours = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(theirs, lr=0.3, **options)
    buffers = (
        sk.linear.Parameters(*map(torch.zeros_like, ours)) if options.get("momentum") else None
    )
    for _ in range(3):
        optimizer.zero_grad()
        expected, y = sk.linear_loss(
            x, theirs[0], theirs[1], v, t, slope=theirs[2], activation="prelu", objective="mse"
        )
        expected.backward()
        before = y.clone()
        optimizer.step()
        loss, out = sk.linear_sgd_(
            x, ours[0], ours[1], v, t, 0.3, slope=ours[2], activation="prelu", objective="mse",
            momentum_buffers=buffers, **options,
        )  # fmt: skip
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(out, before, rtol=1e-12, atol=1e-12)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_step_is_torch_adam(weight_decay: float) -> None:
    x, *parameters, v, t = _optimizer_case()
    theirs = [p.detach().clone().requires_grad_() for p in parameters]
    ours = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.Adam(theirs, lr=0.01, betas=(0.8, 0.95), weight_decay=weight_decay)
    first, second = (sk.linear.Parameters(*map(torch.zeros_like, ours)) for _ in range(2))
    for step in range(1, 4):
        optimizer.zero_grad()
        sk.linear_loss(
            x, theirs[0], theirs[1], v, t, slope=theirs[2], activation="prelu", objective="softmax"
        )[0].backward()
        optimizer.step()
        sk.linear_adam_(
            x, ours[0], ours[1], v, t, 0.01, slope=ours[2], activation="prelu",
            objective="softmax", exp_avgs=first, exp_avg_sqs=second, step=step, betas=(0.8, 0.95),
            weight_decay=weight_decay,
        )  # fmt: skip
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["angular", "euclidean"])
def test_derivatives_near_the_poles(name: str) -> None:
    c = torch.tensor([1 - 1e-5, -1 + 1e-5], dtype=torch.float64, requires_grad=True)
    objective, target = sk.OBJECTIVES[name], torch.zeros(2, dtype=torch.int64)
    (expected,) = torch.autograd.grad(objective.loss(c, target, 1.0).sum(), c)
    found = objective.derivative(c.detach(), target, 1.0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
