"""The projection's Triton kernels in the interpreter: the rule of `spela_kernels.parity`, and its edges."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from triton.runtime import interpreter
from triton.runtime.errors import OutOfResources

import spela_kernels as sk
from spela_kernels.contracts import Settings
from spela_kernels.guarding import warn_of_fallback
from spela_kernels.parity import counted_launches, mismatches
from spela_kernels.projection import launch, reference, triton_backend
from spela_kernels.projection.parity import CASES, Case
from spela_kernels.rules import SgdRule


@pytest.fixture(autouse=True)
def _outputs_start_as_nan() -> Iterator[None]:
    """torch fills what it allocates with NaN in this mode."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_tensor_is_as_close_to_float64_as_the_reference(case: Case) -> None:
    assert mismatches(triton_backend, case) == []


def test_rows_without_direction_have_no_gradient() -> None:
    results = CASES["zero-rows"].run(triton_backend, torch.float32)
    assert (results["gradient.z"][::4] == 0).all()
    assert (results["forward.cosine"][::4] == 0).all()
    assert (results["gradient.z"][1, 1] == 0).all()
    assert (results["gradient.z"][1, 0] != 0).any()


def test_short_rows_have_no_direction() -> None:
    z, projection, vectors, groups, _ = CASES["block-plus-1"].tensors(torch.float32)
    assert triton_backend.scores(z, projection, vectors, groups).abs().max() > 0.1
    assert not triton_backend.scores(1e-16 * z, projection, vectors, groups).any()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mixed", ["forward", "update"]),
        ("block-plus-1", ["forward", "classes", "gradient", "update"]),
    ],
)
def test_the_launches_of_a_step(name: str, expected: list[str]) -> None:
    case = CASES[name]
    settings = Settings(objective=case.objective)
    with counted_launches() as names:
        triton_backend.sgd_step_(
            *case.tensors(case.dtype), settings, None, torch.tensor(0.1), SgdRule()
        )
    assert names == [f"{kernel}_kernel" for kernel in expected]
    assert len(names) == case.launches


@pytest.mark.parametrize("name", ["several-blocks", "block-plus-1"])
def test_shuffled_programs_give_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = CASES[name].run(triton_backend, CASES[name].dtype)
    builder, orders = interpreter.interpreter_builder, []
    set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx

    def shuffle(x: int, y: int, z: int) -> None:
        orders[:] = [torch.randperm(x).tolist()]
        set_dim(x, y, z)

    monkeypatch.setattr(builder, "set_grid_dim", shuffle)
    monkeypatch.setattr(builder, "set_grid_idx", lambda x, y, z: set_idx(orders[0][x], y, z))
    shuffled = CASES[name].run(triton_backend, CASES[name].dtype)
    assert len(orders[0]) > 1
    for key, tensor in straight.items():
        assert torch.equal(tensor, shuffled[key]), key


@pytest.mark.parametrize("objective", ["mse", "softmax"])
def test_a_label_out_of_range_gives_a_nan_loss_and_teaches_nothing(objective: str) -> None:
    """On a GPU nobody reads the labels: the kernels must neither follow them nor hide them."""
    settings = Settings(objective=objective)
    z, projection, *fixed, target = Case((12, 3, 20, 18, 4, 5), objective).tensors(torch.float32)
    bad = target.clone()
    bad[2], bad[7] = 5, -(2**40)
    keep = torch.tensor([row not in (2, 7) for row in range(12)])
    tensors = (z[keep], projection, *fixed, target[keep], settings)
    expected = reference.backward(*tensors, reference.forward(*tensors))
    stepped, lr = projection.clone(), torch.tensor(0.5)
    loss, dz = triton_backend.sgd_step_(z, stepped, *fixed, bad, settings, None, lr, SgdRule())
    assert loss.isnan()
    share = keep.sum() / 12  # the mean stays over the whole batch
    assert (dz[~keep] == 0).all()
    torch.testing.assert_close(dz[keep], share * expected.z)
    torch.testing.assert_close(stepped, projection - lr * share * expected.projection)


@pytest.mark.parametrize("objective", ["mse", "softmax"])
def test_a_group_out_of_range_gives_a_nan_loss_and_is_not_followed(objective: str) -> None:
    settings = Settings(objective=objective)
    case = Case((12, 3, 20, 18, 4, 5), objective)
    z, projection, vectors, groups, target = case.tensors(torch.float32)
    groups[1] = 2**40
    stepped, lr = projection.clone(), torch.tensor(0.5)
    tensors = (z, stepped, vectors, groups, target, settings)
    loss, dz = triton_backend.sgd_step_(*tensors, None, lr, SgdRule())
    assert loss.isnan()
    assert dz.isfinite().all()
    assert torch.equal(stepped[1], projection[1])


def test_addresses_beyond_32_bits() -> None:
    """Samples 2^30 elements apart in a reservation of which only the touched pages ever exist."""
    torch.use_deterministic_algorithms(False)  # filling would touch all of it
    far = 2**30 + 64
    z = torch.empty(2 * far + 16, dtype=torch.float16).as_strided((3, 2, 8), (far, 8, 1))
    near, *rest = Case((3, 2, 8, 5, 2, 3), "mse", dtype=torch.float16).tensors(torch.float16)
    z.copy_(near)
    saved = triton_backend.forward(z, *rest, Settings())
    gradient = triton_backend.backward(z, *rest, Settings(), saved)
    expected = triton_backend.backward(near, *rest, Settings(), saved)
    assert torch.equal(gradient.projection, expected.projection)
    assert gradient.projection.abs().max() > 0


@pytest.mark.parametrize("times", [1, 10**6], ids=["smaller tile", "reference"])
def test_out_of_resources_falls_back_once_told(
    times: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_fallback.cache_clear()
    calls = [0]
    run = launch.run

    def maybe(*args: Any) -> None:
        calls[0] += 1
        if calls[0] <= times:
            raise OutOfResources(200_000, 100_000, "shared memory")
        run(*args)

    monkeypatch.setattr(launch, "run", maybe)
    case = CASES["strided"]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            results = case.run(triton_backend, case.dtype)
    same = case.run(reference, case.dtype)
    for name, tensor in results.items():
        torch.testing.assert_close(tensor, same[name], msg=name)
    assert calls[0] > times or times > 1
    assert len(caplog.records) == (0 if times == 1 else 1)


def test_float64_bfloat16_and_very_long_rows_run_on_the_reference_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "run", lambda *args: pytest.fail("launched"))
    short, long = CASES["zero-rows"], Case((5, 2, 7, 513, 3, 4), "mse")
    for case, dtype in ((short, torch.float64), (short, torch.bfloat16), (long, torch.float32)):
        kernel, same = case.run(triton_backend, dtype), case.run(reference, dtype)
        assert all(torch.equal(kernel[name], same[name]) for name in same)


def test_twenty_adam_steps_stay_with_the_reference() -> None:
    g = torch.Generator().manual_seed(0)
    maps = torch.randn(10, 4, 25, generator=g)  # a map a class
    start = torch.randn(4, 25, 12, generator=g)
    vectors = torch.nn.functional.normalize(torch.randn(4, 5, 12, generator=g), dim=2)
    groups = torch.stack([torch.randperm(10, generator=g) % 5 for _ in range(4)])
    curves = {}
    for backend in ("triton", "reference"):
        projection, losses = start.clone(), []
        first, second = torch.zeros_like(start), torch.zeros_like(start)
        noise = torch.Generator().manual_seed(1)
        with sk.use_backend(backend):
            for step in range(1, 21):
                target = torch.randint(10, (16,), generator=noise)
                z = maps[target] + 0.3 * torch.randn(16, 4, 25, generator=noise)
                loss, _ = sk.projection_adam_(
                    z, projection, vectors, groups, target, 0.03,
                    exp_avg=first, exp_avg_sq=second, step=step,
                )  # fmt: skip
                losses.append(loss)
        curves[backend] = torch.stack(losses)
    assert curves["reference"][-2:].mean() < 0.5 * curves["reference"][:2].mean()
    torch.testing.assert_close(curves["triton"], curves["reference"], rtol=1e-4, atol=1e-5)
