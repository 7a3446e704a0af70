"""Rows that no formula of a direction fits: every back-end says the same of them as the reference.

`test_triton_parity.py` runs this file once more in Triton's interpreter, where Triton is a back-end too.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import spela_kernels as sk
from spela_kernels.linear import compiled

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
