"""Rows that no formula of a direction fits: every back-end says the same of them as the reference.

`test_triton_parity.py` runs this file once more in Triton's interpreter, where Triton is a back-end too.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import spela_kernels as sk
from spela_kernels.cpu import gemm_choice
from spela_kernels.linear import Parameters, compiled

NAMED = sk.available_backends("cpu")
SIZE = 8  # of a row
# float32: squares that vanish, too short for a direction, about that bound, ordinary, squares that overflow.
LENGTHS = (0.0, 1e-30, 1e-14, 5e-13, 9.99e-13, 1.01e-12, 1e-6, 1.0, 1.7e19, 2e19, 1e25, 3e38)


@pytest.fixture(params=[*(name for name in NAMED if name != "reference"), "cpu, not built"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cpu, not built":
        monkeypatch.setattr(compiled, "_rows", None)
        return "cpu"
    return request.param


def _directions() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    row = nn.functional.normalize(torch.randn(SIZE, generator=g, dtype=torch.float64), dim=0)
    return row, nn.functional.normalize(torch.randn(3, SIZE, generator=g), dim=1)


def _layer(backend: str, row: Tensor, vectors: Tensor, objective: str) -> dict[str, Tensor]:
    """A layer that hands its input on, so that its output is the row; its gradient is the bias's."""
    settings = {"activation": "identity", "objective": objective}
    x, eye, bias, target = row[None], torch.eye(SIZE), torch.zeros(SIZE), torch.tensor([1])
    with sk.use_backend(backend):
        _, scores = sk.linear_forward(x, eye, None, vectors, activation="identity")
        loss, _, gradient = sk.linear_gradient(x, eye, bias, vectors, target, **settings)
        stepped = bias.clone()
        before, _ = sk.linear_sgd_(x, eye.clone(), stepped, vectors, target, 1.0, **settings)
    return {
        "scores": scores, "loss": loss, "gradient": gradient.bias,
        "loss of a step": before, "step": -stepped,
    }  # fmt: skip


def _projection(backend: str, row: Tensor, vectors: Tensor, objective: str) -> dict[str, Tensor]:
    z, eye, target = row[None, None], torch.eye(SIZE)[None], torch.tensor([1])
    tensors = (vectors[None], torch.arange(3)[None], target)
    with sk.use_backend(backend):
        scores = sk.projection_forward(z, eye, *tensors[:2])
        loss, gradient = sk.projection_gradient(z, eye, *tensors, objective=objective)
        before, dz = sk.projection_sgd_(z, eye.clone(), *tensors, 0.0, objective=objective)
    return {
        "scores": scores, "loss": loss, "gradient": gradient.z,
        "loss of a step": before, "gradient of a step": dz,
    }  # fmt: skip


OPS = {"linear": _layer, "projection": _projection}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("objective", sk.OBJECTIVES)
@pytest.mark.parametrize("op", OPS)
def test_rows_of_any_length(backend: str, op: str, objective: str, length: float) -> None:
    row, vectors = _directions()
    row = (length * row).float()
    ours = OPS[op](backend, row, vectors, objective)
    theirs = OPS[op]("reference", row, vectors, objective)
    for name, expected in theirs.items():
        size = max(float(expected.abs().max()), 1e-30)
        assert (ours[name] - expected).abs().max() <= 2e-5 * size, name


@pytest.mark.parametrize("op", OPS)
def test_what_the_reference_says(op: str) -> None:
    row, vectors = _directions()
    exact = vectors.double() @ row
    for length in LENGTHS:
        found = OPS[op]("reference", (length * row).float(), vectors, "mse")
        turns = 1e-12 < length < 1.8e19
        cosines = exact * float(turns)
        torch.testing.assert_close(found["scores"][0].double(), cosines, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(
            found["loss"].double(), (1 - cosines[1]) ** 2, rtol=1e-5, atol=1e-7
        )
        assert (found["gradient"].abs().max() > 0) == turns, length


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("objective", sk.OBJECTIVES)
@pytest.mark.parametrize("op", OPS)
def test_a_row_that_is_no_number_has_no_finite_loss(
    backend: str, op: str, objective: str, wrong: float
) -> None:
    row, vectors = _directions()
    row = row.float()
    row[3] = wrong
    found = OPS[op](backend, row, vectors, objective)
    assert found["loss"].isnan()
    assert found["loss of a step"].isnan()
    assert not found["gradient"].isfinite().any()


@pytest.mark.parametrize("activation", [name for name in sk.ACTIVATIONS if name != "prelu"])
def test_activations_far_out(backend: str, activation: str) -> None:
    z = torch.tensor(
        [-math.inf, -1e30, -200.0, -20.0, -0.0, 0.0, 20.0, 200.0, 1e30, math.inf, math.nan]
    )
    arguments = (torch.ones(1, 1), torch.zeros(len(z), 1), z, torch.eye(len(z)))
    with sk.use_backend("reference"):
        expected, _ = sk.linear_forward(*arguments, activation=activation)
    with sk.use_backend(backend):
        y, _ = sk.linear_forward(*arguments, activation=activation)
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=1e-5, atol=1e-6)


G = torch.Generator().manual_seed(0)
WEIGHT, BIAS, X = (torch.randn(*shape, generator=G) for shape in ((6, 6), (6,), (6, 6)))
TARGET, ZEROS, ROW = torch.arange(6) % 4, torch.zeros(6, 6), torch.zeros(6)
SGD = {"lr": 0.1, "momentum": 0.9, "momentum_buffers": Parameters(ZEROS, ROW, None)}
ADAM = {
    "lr": 0.1, "step": 1,
    "exp_avgs": Parameters(ZEROS, ROW, None), "exp_avg_sqs": Parameters(ZEROS + 0, ROW + 0, None),
}  # fmt: skip


def _buffers(weight: Tensor | None, bias: Tensor | None = ROW) -> dict[str, object]:
    return SGD | {"momentum_buffers": Parameters(weight, bias, None)}  # type: ignore[arg-type]


def _moments(weight: Tensor, bias: Tensor | None = ROW) -> dict[str, object]:
    return ADAM | {"exp_avgs": Parameters(weight, bias, None)}


REFUSED = {
    "x is the weight": (SGD | {"x": WEIGHT}, "also another argument"),
    "the vectors are the weight": (SGD | {"vectors": WEIGHT}, "also another argument"),
    "the buffer is the weight": (_buffers(WEIGHT), "also another argument"),
    "one state twice": (_moments(ADAM["exp_avg_sqs"].weight), "also another argument"),
    "expanded weight": (SGD | {"weight": torch.ones(1, 6).expand(6, 6)}, "are one in memory"),
    "expanded bias": (SGD | {"bias": torch.ones(1).expand(6)}, "are one in memory"),
    "expanded moment": (_moments(torch.ones(6, 1).expand(6, 6)), "are one in memory"),
    "rows that overlap": (
        SGD | {"weight": torch.ones(99).as_strided((6, 6), (1, 2))},
        "one in memory",
    ),
    "integer buffer": (_buffers(ZEROS.int()), "must be floating point"),
    "no buffer of the bias": (_buffers(ZEROS, None), "`momentum of bias` is None"),
    "no buffers": (_buffers(None, None), "`momentum of weight` is None"),
    "no moment of the bias": (_moments(ZEROS, None), "`exp_avg of bias` is None"),
    "two rates": (SGD | {"lr": torch.tensor([0.1, 0.2])}, "must be one number"),
    "no rate": (SGD | {"lr": torch.empty(0)}, "must be one number"),
    "a rate that is no number": (SGD | {"lr": math.nan}, "must be finite"),
    "a negative rate": (ADAM | {"lr": -1.0}, "must be finite and >= 0"),
    "count 0": (ADAM | {"step": 0}, "counts from 1"),
    "count 0 in a tensor": (ADAM | {"step": torch.tensor(0.0)}, "counts from 1"),
    "beta 1": (ADAM | {"betas": (0.9, 1.0)}, "must lie in"),
    "scale": (SGD | {"scale": math.inf}, "`scale` must be > 0 and finite"),
    "slope": (SGD | {"negative_slope": math.inf}, "`negative_slope` must be >= 0 and finite"),
    "no inputs": (SGD | {"x": torch.ones(6, 0), "weight": torch.ones(6, 0)}, "needs inputs"),
    "no classes": (SGD | {"vectors": torch.ones(0, 6)}, "needs inputs, outputs and classes"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_a_step_that_could_not_be_right_is_refused_before_it_begins(
    backend: str, change: str
) -> None:
    arguments, message = REFUSED[change]
    step = {"x": X, "weight": WEIGHT, "bias": BIAS, "vectors": torch.eye(6)[:4], "target": TARGET}
    take = sk.linear_adam_ if "step" in arguments else sk.linear_sgd_
    before = WEIGHT.clone(), BIAS.clone()
    with sk.use_backend(backend), pytest.raises((ValueError, TypeError), match=message):
        take(**(step | arguments))
    assert torch.equal(WEIGHT, before[0])
    assert torch.equal(BIAS, before[1])
    assert not ZEROS.any()


def test_what_is_only_read_may_be_one_tensor(backend: str) -> None:
    eye, weight = torch.eye(6), WEIGHT.clone()
    with sk.use_backend(backend):
        expected, _ = sk.linear_loss(eye, weight, None, eye, torch.arange(6))
        loss, _ = sk.linear_sgd_(eye, weight, None, eye, torch.arange(6), 0.1)
    torch.testing.assert_close(loss, expected)
    assert not torch.equal(weight, WEIGHT)


@pytest.mark.parametrize("rule", ["sgd", "adam"])
@pytest.mark.parametrize("library", ["blas", "compiled"])
def test_autograd_notices_a_step(
    backend: str, rule: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that saved the weight from before must not go on with the new one."""
    monkeypatch.setattr(gemm_choice, "pinned_library", lambda: library)
    weight, x = WEIGHT.clone().requires_grad_(), X.clone().requires_grad_()
    y = nn.functional.linear(x, weight)
    step = (X, weight, None, torch.eye(6)[:4], TARGET, 0.1)
    state = (Parameters(torch.zeros(6, 6), None, None) for _ in range(2))
    with sk.use_backend(backend):
        if rule == "sgd":
            sk.linear_sgd_(*step)
        else:
            sk.linear_adam_(*step, exp_avgs=next(state), exp_avg_sqs=next(state), step=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    projection = torch.randn(1, 6, 6, requires_grad=True)
    z = X[:, None].clone().requires_grad_()
    p, moments = torch.matmul(z, projection[0]), [torch.zeros(1, 6, 6) for _ in range(2)]
    fixed = (torch.eye(6)[None, :4], torch.arange(4)[None], TARGET, 0.1)
    with sk.use_backend(backend):
        if rule == "sgd":
            sk.projection_sgd_(z, projection, *fixed)
        else:
            sk.projection_adam_(
                z, projection, *fixed, exp_avg=moments[0], exp_avg_sq=moments[1], step=1
            )
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        p.sum().backward()


PROJECTION = {
    "z": X[:, None], "projection": WEIGHT[None], "vectors": torch.eye(6)[None, :4],
    "groups": torch.arange(4)[None], "target": TARGET, "lr": 0.1, "momentum": 0.9,
    "momentum_buffer": ZEROS[None],
}  # fmt: skip
REFUSED_PROJECTIONS = {
    "z is the projection": ({"z": WEIGHT[:, None]}, "also another argument"),
    "the buffer is the projection": ({"momentum_buffer": WEIGHT[None]}, "also another argument"),
    "expanded": ({"projection": torch.ones(1, 1, 6).expand(1, 6, 6)}, "are one in memory"),
    "integer buffer": ({"momentum_buffer": ZEROS[None].int()}, "must be floating point"),
    "no maps": ({"z": torch.ones(6, 1, 0), "projection": torch.ones(1, 0, 6)}, "needs kernels"),
}


@pytest.mark.parametrize("change", REFUSED_PROJECTIONS)
def test_a_projections_step_likewise(backend: str, change: str) -> None:
    arguments, message = REFUSED_PROJECTIONS[change]
    before = WEIGHT.clone()
    with sk.use_backend(backend), pytest.raises((ValueError, TypeError), match=message):
        sk.projection_sgd_(**(PROJECTION | arguments))
    assert torch.equal(WEIGHT, before)
