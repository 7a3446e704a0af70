"""A row that a user adds to a table, or puts in another's place, is what every back-end computes.

`test_triton_parity.py` runs this file once more in Triton's interpreter, where Triton is a back-end too.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import spela_kernels as sk
from spela_kernels.activations import Activation
from spela_kernels.backend import select_backend
from spela_kernels.contracts import Settings
from spela_kernels.linear import Parameters, compiled, parity
from spela_kernels.objectives import Objective
from spela_kernels.projection import parity as projection_parity

CPU = torch.device("cpu")
NAMED = sk.available_backends("cpu")
SCALE = 3.0


def _one_hot(c: Tensor, target: Tensor) -> Tensor:
    return nn.functional.one_hot(target, c.shape[1]).to(c.dtype)


OBJECTIVES = {
    # Its derivative hands back what it was given: nobody may write there.
    "square": Objective("square", False, lambda c, t, s: c * c / 2, lambda c, t, s: c, "here"),
    "decay": Objective(
        "decay",
        False,
        lambda c, t, s: torch.exp(-s * c),
        lambda c, t, s: -s * torch.exp(-s * c),
        "",
    ),
    "brier": Objective(
        "brier",
        True,
        lambda c, t, s: s * ((c - _one_hot(c, t)) ** 2).sum(dim=1),
        lambda c, t, s: 2 * s * (c - _one_hot(c, t)),
        "",
    ),
}
ACTIVATIONS = {
    "softplus": Activation(
        "softplus",
        True,
        lambda z, slope: nn.functional.softplus(z),
        lambda z, slope: torch.sigmoid(z),
    ),
    "sigmoid": Activation(
        "sigmoid", False, lambda z, slope: torch.sigmoid(z), lambda y, slope: y * (1 - y)
    ),
}
CASES = {
    **{f"objective {name}": (name, row, "leaky_relu", None) for name, row in OBJECTIVES.items()},
    **{f"activation {name}": ("log", None, name, row) for name, row in ACTIVATIONS.items()},
    "both": ("brier", OBJECTIVES["brier"], "softplus", ACTIVATIONS["softplus"]),
    "in the place of log": ("log", OBJECTIVES["brier"], "leaky_relu", None),
    "in the place of softmax": ("softmax", OBJECTIVES["brier"], "tanh", None),
    "in the place of mse": ("mse", OBJECTIVES["decay"], "relu", None),
    **{
        f"in the place of {name}": ("softmax", None, name, ACTIVATIONS["sigmoid"])
        for name in ("leaky_relu", "relu", "identity", "tanh")
    },
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Names and scale, as the functions take them, with the rows in the tables."""
    objective, row, activation, phi = request.param
    if row is not None:
        monkeypatch.setitem(sk.OBJECTIVES, objective, row)
    if phi is not None:
        monkeypatch.setitem(sk.ACTIVATIONS, activation, phi)
    return {"objective": objective, "activation": activation, "scale": SCALE}


@pytest.fixture(params=["auto", *(name for name in NAMED if name != "triton"), "cpu, not built"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every one that runs such rows."""
    if request.param == "cpu, not built":
        monkeypatch.setattr(compiled, "_rows", None)
        return "cpu"
    return request.param


def _loss(objective: str, cosine: Callable[[], Tensor], own: Callable[[], Tensor], target: Tensor):  # type: ignore[no-untyped-def]
    row = sk.OBJECTIVES[objective]
    return row.loss(cosine() if row.all_classes else own(), target, SCALE).mean()


def _layer() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    vectors = nn.functional.normalize(torch.randn(4, 7, generator=g), dim=1)
    x, weight, bias = (torch.randn(*shape, generator=g) for shape in ((9, 5), (7, 5), (7,)))
    return x, weight, bias, vectors, torch.randint(4, (9,), generator=g)


def _expected(settings: dict[str, object]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients of weight and bias: autograd in float64 through the rows' forward functions."""
    x, weight, bias, vectors, target = _layer()
    parameters = [weight.double().requires_grad_(), bias.double().requires_grad_()]
    z = nn.functional.linear(x.double(), *parameters)
    y = sk.ACTIVATIONS[settings["activation"]].forward(z, 1e-3)
    cosines = nn.functional.normalize(y, dim=1) @ vectors.double().T
    own = cosines.gather(1, target[:, None])[:, 0]
    loss = _loss(settings["objective"], lambda: cosines, lambda: own, target)
    return loss.detach(), *torch.autograd.grad(loss, parameters)


def _close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.double(), theirs, rtol=2e-5, atol=2e-6)


def test_linear_against_autograd(backend: str, settings: dict[str, object]) -> None:
    x, weight, bias, vectors, target = _layer()
    loss, dweight, dbias = _expected(settings)
    with sk.use_backend(backend):
        ours, _, gradient = sk.linear_gradient(x, weight, bias, vectors, target, **settings)
        leaves = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        through, _ = sk.linear_loss(x, *leaves, vectors, target, **settings)
        through.backward()
        stepped = weight.clone(), bias.clone()
        buffers = Parameters(torch.zeros_like(weight), torch.zeros_like(bias), None)
        before, _ = sk.linear_sgd_(
            x, *stepped, vectors, target, 0.5, momentum=0.9, momentum_buffers=buffers, **settings
        )
        adam = weight.clone(), bias.clone()
        first, second = (
            Parameters(torch.zeros_like(weight), torch.zeros_like(bias), None) for _ in range(2)
        )
        sk.linear_adam_(
            x, *adam, vectors, target, 0.5, exp_avgs=first, exp_avg_sqs=second, step=1, **settings
        )
    for value in (ours, through.detach(), before):
        _close(value, loss)
    for index, (start, expected) in enumerate(((weight, dweight), (bias, dbias))):
        _close(gradient[index], expected)
        _close(leaves[index].grad, expected)
        _close(buffers[index], expected)
        _close(stepped[index], start - 0.5 * expected)
        _close(first[index], 0.1 * expected)
        assert not torch.equal(adam[index], start)


def _map() -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    z, projection = torch.randn(6, 3, 5, generator=g), torch.randn(3, 5, 4, generator=g)
    vectors = nn.functional.normalize(torch.randn(3, 2, 4, generator=g), dim=2)
    groups = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 1]])
    return z, projection, vectors, groups, torch.randint(3, (6,), generator=g)


def test_projection_against_autograd(backend: str, settings: dict[str, object]) -> None:
    z, projection, vectors, groups, target = _map()
    leaves = z.double().requires_grad_(), projection.double().requires_grad_()
    p = nn.functional.normalize(torch.einsum("bkd,kde->bke", *leaves), dim=2)
    of_class = vectors.double()[torch.arange(3)[:, None], groups]  # (K, C, d)
    cosines = torch.einsum("bke,kce->bkc", p, of_class)
    own = cosines.gather(2, target[:, None, None].expand(-1, 3, 1))[..., 0]
    loss = _loss(settings["objective"], lambda: cosines.mean(dim=1), lambda: own, target)
    expected = torch.autograd.grad(loss, leaves)
    own_settings = {name: settings[name] for name in ("objective", "scale")}
    with sk.use_backend(backend):
        ours, gradient = sk.projection_gradient(
            z, projection, vectors, groups, target, **own_settings
        )
        stepped = projection.clone()
        before, dz = sk.projection_sgd_(z, stepped, vectors, groups, target, 0.5, **own_settings)
    for value in (ours, before):
        _close(value, loss.detach())
    for value in (gradient.z, dz):
        _close(value, expected[0])
    _close(gradient.projection, expected[1])
    _close(stepped, projection - 0.5 * expected[1])


def test_who_is_chosen(settings: dict[str, object]) -> None:
    """`auto` takes the next that can; Triton asked for by name refuses in one line, before any change."""
    asked = Settings(str(settings["activation"]), objective=str(settings["objective"]))
    others = [name for name in NAMED if name != "triton"]
    with sk.use_backend("auto"):
        assert select_backend(CPU, asked) == others[0]
    if "triton" not in NAMED:
        return
    assert select_backend(CPU) == "triton"
    x, weight, bias, vectors, target = _layer()
    before = weight.clone()
    with (
        sk.use_backend("triton"),
        pytest.raises(
            ValueError, match=r"^back-end 'triton' has no kernel for \w+ '\w+': use [^\n]*$"
        ),
    ):
        sk.linear_sgd_(x, weight, bias, vectors, target, 0.5, **settings)
    assert torch.equal(weight, before)


def test_every_row_that_the_kernels_hold_has_a_case_of_parity() -> None:
    """And the package's own rows are all of that kind."""
    assert {row.name for row in sk.OBJECTIVES.values() if row.in_kernels} == set(sk.OBJECTIVES)
    assert {row.name for row in sk.ACTIVATIONS.values() if row.in_kernels} == set(sk.ACTIVATIONS)
    linear, projection = parity.CASES.values(), projection_parity.CASES.values()
    assert {case.objective for case in linear} == set(sk.OBJECTIVES)
    assert {case.activation for case in linear} == set(sk.ACTIVATIONS)
    assert {case.objective for case in projection} == set(sk.OBJECTIVES)
