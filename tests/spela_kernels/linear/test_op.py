"""The ops as torch sees them: opcheck, compile, contracts, back-end choice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import spela_kernels as sk
from spela_kernels import backend
from spela_kernels.linear import Parameters
from spela_kernels.linear.op import adam_op, forward_op, loss_backward_op, loss_op, sgd_op
from tests.spela_kernels.refusals import check_refused


def _tensors(requires_grad: bool = False, prelu: bool = False) -> list[Tensor | None]:
    g = torch.Generator().manual_seed(0)
    return [
        torch.randn(7, 5, generator=g),
        torch.randn(6, 5, generator=g).requires_grad_(requires_grad),
        torch.randn(6, generator=g).requires_grad_(requires_grad),
        torch.full((1,), 0.2).requires_grad_(requires_grad) if prelu else None,
        torch.randn(4, 6, generator=g),
        torch.randint(4, (7,), generator=g),
    ]


@pytest.mark.parametrize("prelu", [False, True], ids=["leaky_relu", "prelu"])
def test_opcheck(prelu: bool) -> None:
    settings = ("prelu" if prelu else "leaky_relu", 0.01, "softmax", 2.0)
    opcheck(loss_op, (*_tensors(True, prelu), *settings))
    plain = _tensors(prelu=prelu)
    opcheck(forward_op, (*plain[:5], *settings))
    opcheck(loss_backward_op, (None, *plain, *loss_op(*plain, *settings)[1:], *settings))
    opcheck(
        loss_backward_op, (torch.tensor(2.0), *plain, *loss_op(*plain, *settings)[1:], *settings)
    )
    buffers = [None if p is None else torch.zeros_like(p) for p in plain[1:4]]
    lr = torch.tensor(0.1)
    opcheck(sgd_op, (*plain, None, None, None, lr, 0.0, 0.0, False, *settings))
    opcheck(sgd_op, (*plain, *buffers, lr, 0.9, 1e-3, True, *settings))
    second = [None if p is None else torch.zeros_like(p) for p in plain[1:4]]
    step = torch.tensor(1.0)
    opcheck(adam_op, (*plain, *buffers, *second, step, lr, 0.9, 0.99, 1e-8, 0.0, *settings))


def test_compile_gives_the_same_numbers() -> None:
    x, w, b, _, v, t = _tensors()

    def step(x: Tensor, w: Tensor, b: Tensor, t: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        loss, y = sk.linear_sgd_(x, w, b, v, t, lr)
        return loss, y * 2

    eager, compiled = (w.clone(), b.clone()), (w.clone(), b.clone())
    lr = torch.tensor(0.5)
    expected = step(x, *eager, t, lr)
    result = torch.compile(step, fullgraph=True)(x, *compiled, t, lr)
    assert not torch.equal(eager[0], w)
    torch.testing.assert_close(compiled, eager, rtol=0, atol=0)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_loss_reaches_parameters_and_never_the_input() -> None:
    x, w, b, _, v, t = _tensors(requires_grad=True)
    x.requires_grad_()
    loss, y = sk.linear_loss(x, w, b, v, t)
    (3 * loss).backward()
    assert x.grad is None
    assert not y.requires_grad
    assert not any(out.requires_grad for out in sk.linear_forward(x, w, b, v))
    _, _, gradient = sk.linear_gradient(x, w, b, v, t)
    torch.testing.assert_close(w.grad, 3 * gradient.weight)
    torch.testing.assert_close(b.grad, 3 * gradient.bias)


def test_steps_leave_the_other_tensors_alone() -> None:
    x, w, b, _, v, t = _tensors()
    before = [a.clone() for a in (x, v, t)]
    sk.linear_sgd_(x, w, b, v, t, 0.1)
    for now, then in zip((x, v, t), before, strict=True):
        assert torch.equal(now, then)


def test_noncontiguous_arguments() -> None:
    x, w, b, _, v, t = _tensors()
    strided_w = torch.empty(5, 6).T.copy_(w)
    strided_x = torch.empty(7, 10)[:, ::2].copy_(x)
    expected = sk.linear_gradient(x, w, b, v, t)
    result = sk.linear_gradient(strided_x, strided_w, b, v.T.contiguous().T, t)
    torch.testing.assert_close(result[0], expected[0])
    torch.testing.assert_close(result[2].weight, expected[2].weight)
    plain = w.clone()
    sk.linear_sgd_(x, plain, b.clone(), v, t, 0.1)
    sk.linear_sgd_(strided_x, strided_w, b.clone(), v, t, 0.1)
    assert strided_w.stride() == (1, 6)
    torch.testing.assert_close(strided_w, plain)


def _bad(**changes: Any) -> dict[str, Any]:
    x, w, b, _, v, t = _tensors()
    return {"x": x, "weight": w, "bias": b, "vectors": v, "target": t, **changes}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.randn(7, 6)}, ValueError, "`x` has 6 features but `weight` takes 5"),
        ({"x": torch.randn(7, 1, 5)}, ValueError, "flatten each sample"),
        ({"x": torch.randn(0, 5)}, ValueError, "no rows"),
        ({"x": torch.randn(7, 5).double()}, TypeError, "`x` is torch.float64"),
        ({"weight": torch.ones(6, 5, dtype=torch.int64)}, TypeError, "floating point"),
        ({"bias": torch.randn(5)}, ValueError, r"`bias` must be \(6,\)"),
        ({"vectors": torch.randn(4, 7)}, ValueError, r"vectors must be \(C, 6\)"),
        ({"target": torch.zeros(6, dtype=torch.int64)}, ValueError, "one label per sample"),
        ({"target": torch.zeros(7)}, TypeError, "int64"),
        ({"target": torch.full((7,), 4)}, ValueError, r"labels 0\.\.3, got 4"),
        ({"target": torch.full((7,), -1)}, ValueError, r"labels 0\.\.3, got -1"),
        ({"objective": "hinge"}, ValueError, "unknown objective 'hinge': use one of log"),
        ({"activation": "swish"}, ValueError, "unknown activation 'swish'"),
        ({"negative_slope": -0.1}, ValueError, "`negative_slope` must be >= 0"),
        ({"scale": 0.0}, ValueError, "`scale` must be > 0"),
        ({"activation": "prelu"}, ValueError, "`slope`"),
        ({"slope": torch.ones(1)}, ValueError, "`slope`"),
        ({"vectors": torch.randn(4, 6, device="meta")}, ValueError, "move both to one device"),
    ],
)
def test_contract(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    check_refused(sk.linear_sgd_, sk.linear_loss, _bad(**changes), "weight", error, message)


def test_optimizer_buffers_are_checked() -> None:
    arguments = _bad()
    with pytest.raises(ValueError, match="momentum needs"):
        sk.linear_sgd_(lr=0.1, momentum=0.9, **arguments)
    wrong = Parameters(torch.zeros(6, 4), torch.zeros(6), None)
    with pytest.raises(ValueError, match="momentum of weight"):
        sk.linear_sgd_(lr=0.1, momentum=0.9, momentum_buffers=wrong, **arguments)


def test_backend_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert sk.available_backends("cpu")[-1] == "reference"
    with sk.use_backend("reference"):
        assert sk.select_backend(cpu) == "reference"
        with sk.use_backend("auto"):
            assert sk.select_backend(cpu) == sk.available_backends(cpu)[0]
        assert sk.select_backend(cpu) == "reference"
    with pytest.raises(ValueError, match="unknown back-end 'cuda'"), sk.use_backend("cuda"):
        pass
    for name in ("reference", "fastest"):
        monkeypatch.setenv("SPELA_BACKEND", name)
        backend.named_backend.cache_clear()
        if name == "reference":
            assert sk.select_backend(cpu) == "reference"
        else:
            with pytest.raises(ValueError, match="SPELA_BACKEND: use one of auto"):
                sk.select_backend(cpu)
    monkeypatch.undo()
    backend.named_backend.cache_clear()


def test_a_forward_mode_derivative_is_refused() -> None:
    x, weight, bias, _, vectors, target = _tensors(prelu=False)
    with pytest.raises(NotImplementedError, match="linear_loss has no forward-mode derivative"):
        torch.func.jvp(
            lambda w: sk.linear_loss(x, w, bias, vectors, target)[0], (weight,), (weight,)
        )


@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_buffers_that_are_given_are_updated_by_every_backend(
    activation: str, dtype: torch.dtype
) -> None:
    found = []
    for name in ("cpu", "reference"):
        x, weight, bias, _, vectors, target = _tensors(prelu=False)
        x, weight, bias, vectors = (
            t.detach().to(dtype).clone() for t in (x, weight, bias, vectors)
        )
        buffers = Parameters(torch.ones_like(weight), torch.ones_like(bias), None)
        settings = {"activation": activation, "momentum_buffers": buffers}
        with sk.use_backend(name):
            for momentum in (0.0, 0.9):
                sk.linear_sgd_(
                    x, weight, bias, vectors, target, lr=0.1, momentum=momentum, **settings
                )
        found.append((weight, bias, *buffers[:2]))
    torch.testing.assert_close(*found)
