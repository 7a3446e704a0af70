"""The projection's ops as torch sees them: opcheck, compile, strides, contracts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import spela_kernels as sk
from spela_kernels.projection.op import adam_op, forward_op, loss_backward_op, loss_op, sgd_op
from tests.spela_kernels.refusals import check_refused


def _tensors(requires_grad: bool = False) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [
        torch.randn(7, 3, 5, generator=g).requires_grad_(requires_grad),
        torch.randn(3, 5, 6, generator=g).requires_grad_(requires_grad),
        torch.nn.functional.normalize(torch.randn(3, 4, 6, generator=g), dim=2),
        torch.stack([torch.randperm(4, generator=g) for _ in range(3)]),
        torch.randint(4, (7,), generator=g),
    ]


@pytest.mark.parametrize("objective", ["mse", "softmax"])
def test_opcheck(objective: str) -> None:
    settings = (objective, 2.0)
    opcheck(loss_op, (*_tensors(True), *settings))
    plain = _tensors()
    opcheck(forward_op, tuple(plain[:4]))
    saved = loss_op(*plain, *settings)[1:]
    opcheck(loss_backward_op, (None, *plain, *saved, *settings))
    opcheck(loss_backward_op, (torch.tensor(2.0), *plain, *saved, *settings))
    first, second = torch.zeros_like(plain[1]), torch.zeros_like(plain[1])
    lr, step = torch.tensor(0.1), torch.tensor(1.0)
    opcheck(sgd_op, (*plain, None, lr, 0.0, 0.0, False, *settings))
    opcheck(sgd_op, (*plain, first, lr, 0.9, 1e-3, True, *settings))
    opcheck(adam_op, (*plain, first, second, step, lr, 0.9, 0.99, 1e-8, 0.0, *settings))


def test_compile_gives_the_same_numbers() -> None:
    z, projection, v, groups, t = _tensors()

    def step(z: Tensor, projection: Tensor, lr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = sk.projection_forward(z, projection, v, groups)
        loss, dz = sk.projection_sgd_(z, projection, v, groups, t, lr)
        return loss, dz * 2, scores

    eager, compiled, lr = projection.clone(), projection.clone(), torch.tensor(0.5)
    expected = step(z, eager, lr)
    result = torch.compile(step, fullgraph=True)(z, compiled, lr)
    assert not torch.equal(eager, projection)
    torch.testing.assert_close(compiled, eager, rtol=0, atol=0)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_compiled_loss_has_the_same_gradients() -> None:
    z, projection, v, groups, t = _tensors(requires_grad=True)

    def loss(z: Tensor, projection: Tensor) -> Tensor:
        return 3 * sk.projection_loss(z, projection, v, groups, t, objective="softmax")

    torch.compile(loss, fullgraph=True)(z, projection).backward()
    _, gradient = sk.projection_gradient(z, projection, v, groups, t, objective="softmax")
    torch.testing.assert_close(z.grad, 3 * gradient.z)
    torch.testing.assert_close(projection.grad, 3 * gradient.projection)


def test_steps_leave_the_other_tensors_alone() -> None:
    z, projection, *fixed = _tensors()
    before = [a.clone() for a in (z, *fixed)]
    sk.projection_sgd_(z, projection, *fixed, 0.1)
    for now, then in zip((z, *fixed), before, strict=True):
        assert torch.equal(now, then)


def test_autocast_leaves_the_ops_dtypes_alone() -> None:
    tensors = _tensors()
    expected = loss_op(*tensors, "softmax", 2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss_op(*tensors, "softmax", 2.0)
        scores = forward_op(*tensors[:4])
    for ours, theirs in zip(result, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(scores, forward_op(*tensors[:4]))


def test_noncontiguous_arguments() -> None:
    z, projection, *fixed = _tensors()
    strided_z = torch.empty(7, 5, 3).transpose(1, 2).copy_(z)  # channels last
    strided_projection = torch.empty(3, 6, 5).mT.copy_(projection)
    expected = sk.projection_gradient(z, projection, *fixed)[1]
    result = sk.projection_gradient(strided_z, strided_projection, *fixed)[1]
    for name, ours, theirs in zip(expected._fields, result, expected, strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda m, n=name: f"{n}: {m}")
    sk.projection_sgd_(z, projection, *fixed, 0.1)
    sk.projection_sgd_(strided_z, strided_projection, *fixed, 0.1)
    assert strided_projection.stride() == (30, 1, 5)
    torch.testing.assert_close(strided_projection, projection)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"z": torch.randn(7, 3, 4)}, ValueError, r"takes \(B, 3, 5\)"),
        ({"z": torch.randn(7, 2, 5)}, ValueError, r"takes \(B, 3, 5\)"),
        ({"z": torch.randn(7, 3, 5, 1)}, ValueError, "flatten each kernel's map"),
        ({"z": torch.randn(0, 3, 5)}, ValueError, "no rows"),
        ({"z": torch.randn(7, 3, 5).double()}, TypeError, "`z` is torch.float64"),
        ({"projection": torch.ones(3, 5, 6).long()}, TypeError, "floating point"),
        ({"projection": torch.randn(5, 6)}, ValueError, r"`projection` must be \(K, D, d\)"),
        ({"vectors": torch.randn(3, 4, 7)}, ValueError, r"`vectors` must be \(3, G, 6\)"),
        ({"vectors": torch.randn(2, 4, 6)}, ValueError, r"`vectors` must be \(3, G, 6\)"),
        ({"vectors": torch.randn(3, 4, 6, device="meta")}, ValueError, "move both to one device"),
        ({"groups": torch.zeros(2, 4).long()}, ValueError, r"`groups` must be \(3, C\)"),
        ({"groups": torch.zeros(3, 0).long()}, ValueError, r"`groups` must be \(3, C\)"),
        ({"groups": torch.zeros(3, 4)}, TypeError, "`groups` must be int64"),
        ({"groups": torch.full((3, 4), 4)}, ValueError, r"groups 0\.\.3, got 4"),
        ({"groups": torch.full((3, 4), -1)}, ValueError, r"groups 0\.\.3, got -1"),
        ({"target": torch.zeros(6).long()}, ValueError, "one label per sample"),
        ({"target": torch.zeros(7)}, TypeError, "int64"),
        ({"target": torch.full((7,), 4)}, ValueError, r"labels 0\.\.3, got 4"),
        ({"objective": "hinge"}, ValueError, "unknown objective 'hinge'"),
        ({"scale": 0.0}, ValueError, "`scale` must be > 0"),
    ],
)
def test_contract(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    names = ("z", "projection", "vectors", "groups", "target")
    arguments: dict[str, Any] = {**dict(zip(names, _tensors(), strict=True)), **changes}
    step, loss = sk.projection_sgd_, sk.projection_loss
    check_refused(step, loss, arguments, "projection", error, message)


def test_optimizer_buffers_are_checked() -> None:
    tensors = _tensors()
    with pytest.raises(ValueError, match="momentum needs"):
        sk.projection_sgd_(*tensors, 0.1, momentum=0.9)
    wrong, right = torch.zeros(3, 5, 5), torch.zeros(3, 5, 6)
    with pytest.raises(ValueError, match=r"`momentum_buffer` must be \(3, 5, 6\)"):
        sk.projection_sgd_(*tensors, 0.1, momentum=0.9, momentum_buffer=wrong)
    with pytest.raises(ValueError, match="`exp_avg_sq` must be"):
        sk.projection_adam_(*tensors, 0.1, exp_avg=right, exp_avg_sq=wrong, step=1)


def test_a_forward_mode_derivative_is_refused() -> None:
    z, projection, *fixed = _tensors()
    with pytest.raises(NotImplementedError, match="projection_loss has no forward-mode derivative"):
        torch.func.jvp(lambda p: sk.projection_loss(z, p, *fixed), (projection,), (projection,))
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="use backward"),
    ):
        sk.projection_loss(z, projection, *fixed)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_buffer_that_is_given_is_updated_by_every_backend(momentum: float) -> None:
    found = []
    for name in ("cpu", "reference"):
        z, projection, *fixed = (t.double() if t.is_floating_point() else t for t in _tensors())
        buffer = torch.ones_like(projection)
        with sk.use_backend(name):
            for rate in (momentum, 0.9):
                sk.projection_sgd_(
                    z, projection, *fixed, 0.1, momentum=rate, momentum_buffer=buffer
                )
        found.append((projection, buffer))
    torch.testing.assert_close(*found)
