"""The Triton kernels in the interpreter against the float64 oracle, by the rule of `spela_kernels.parity`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.errors import OutOfResources

import spela_kernels as sk
from spela_kernels.contracts import Settings
from spela_kernels.guarding import warn_of_fallback
from spela_kernels.linear import launch, reference, triton_backend
from spela_kernels.linear.parity import CASES, Case
from spela_kernels.linear.types import Parameters
from spela_kernels.parity import counted_launches, mismatches
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


@pytest.mark.parametrize(
    "case",
    [CASES["paper-head-fp16"], CASES["block-plus-1"], CASES["prelu"]],
    ids=["label", "softmax", "prelu"],
)
def test_a_step_is_three_launches(case: Case) -> None:
    x, params, vectors, target = case.tensors(case.dtype)
    settings = Settings(case.activation, objective=case.objective)
    with counted_launches() as names:
        triton_backend.sgd_step_(
            x, params, vectors, target, settings, None, torch.tensor(0.1), SgdRule()
        )
    assert names == ["forward_kernel", "finalise_kernel", "update_kernel"]


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


@pytest.mark.parametrize("objective", ["log", "softmax"])
def test_a_label_out_of_range_gives_a_nan_loss_and_teaches_nothing(objective: str) -> None:
    """On a GPU nobody reads the labels: the kernels must neither follow them nor hide them."""
    case = Case((12, 20, 18, 5), objective, "leaky_relu")
    settings = Settings(objective=objective)
    x, params, vectors, target = case.tensors(torch.float32)
    bad = target.clone()
    bad[2], bad[7] = 5, -(2**40)
    keep = torch.tensor([row not in (2, 7) for row in range(12)])
    tensors = (x[keep], params, vectors, target[keep], settings)
    expected = reference.backward(*tensors, reference.forward(*tensors))
    lr = torch.tensor(0.5)
    stepped = Parameters(*(None if p is None else p.clone() for p in params))  # type: ignore[arg-type]
    loss, _ = triton_backend.sgd_step_(x, stepped, vectors, bad, settings, None, lr, SgdRule())
    assert loss.isnan()
    share = lr * keep.sum() / 12  # the mean stays over the whole batch
    torch.testing.assert_close(stepped.weight, params.weight - share * expected.weight)


def test_addresses_beyond_32_bits() -> None:
    """Rows 2^31 elements apart in a reservation of which only the touched pages ever exist."""
    torch.use_deterministic_algorithms(False)  # filling would touch all of it
    far = 2**30 + 64
    x = torch.empty(2 * far + 16, dtype=torch.float16).as_strided((3, 8), (far, 1))
    case = Case((3, 8, 5, 2), "log", "leaky_relu", dtype=torch.float16)
    near, params, vectors, target = case.tensors(torch.float16)
    x.copy_(near)
    settings = Settings()
    saved = triton_backend.forward(x, params, vectors, target, settings)
    gradient = triton_backend.backward(x, params, vectors, target, settings, saved)
    expected = triton_backend.backward(
        near, params, vectors, target, settings,
        triton_backend.forward(near, params, vectors, target, settings),
    )  # fmt: skip
    assert torch.equal(gradient.weight, expected.weight)
    assert gradient.weight.abs().max() > 0


def _failing(times: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """`run` that runs out of shared memory the first `times` calls; counts the calls."""
    calls = [0]
    run = launch.run

    def maybe(*args: Any) -> None:
        calls[0] += 1
        if calls[0] <= times:
            raise OutOfResources(200_000, 100_000, "shared memory")
        run(*args)

    monkeypatch.setattr(launch, "run", maybe)
    return calls


@pytest.mark.parametrize("times", [1, 10**6], ids=["smaller tile", "reference"])
def test_out_of_resources_falls_back_once_told(
    times: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_fallback.cache_clear()
    calls = _failing(times, monkeypatch)
    case = CASES["strided"]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            results = case.run(triton_backend, case.dtype)
    same = case.run(reference, case.dtype)
    for name, tensor in results.items():
        torch.testing.assert_close(tensor, same[name], msg=name)
    assert calls[0] > times or times > 1
    assert len(caplog.records) == (0 if times == 1 else 1)


def test_an_older_triton_beside_a_newer_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton up to 3.6 takes int() of an array, which numpy refuses from 2.4 on."""
    prepare = interpreter._patch_lang_tensor

    def prepare_as_3_6(tensor: Any, *scope: Any) -> None:
        def scalar(self: Any) -> int:
            if self.handle.data.ndim > 0:
                raise TypeError("only 0-dimensional arrays can be converted to Python scalars")
            return int(self.handle.data)

        prepare(tensor, *scope)
        tensor.__index__ = scalar

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", prepare_as_3_6)
    assert mismatches(triton_backend, CASES["ones"]) == []
    assert interpreter._patch_lang_tensor is prepare_as_3_6  # others find Triton as they left it


def test_float64_and_bfloat16_run_on_the_reference_here() -> None:
    warn_of_fallback.cache_clear()
    case = CASES["zero-rows"]
    for dtype in (torch.float64, torch.bfloat16):
        kernel, same = case.run(triton_backend, dtype), case.run(reference, dtype)
        assert all(torch.equal(kernel[name], same[name]) for name in same)


def _train(backend: str, x: Tensor, target: Tensor, step: Callable[..., Any]) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    weights = [torch.randn(o, i, generator=g) / i**0.5 for o, i in ((32, 64), (24, 32))]
    vectors = [_simplex(10, w.shape[0]) for w in weights]
    losses = []
    with sk.use_backend(backend):
        for start in range(0, 20 * 32, 32):
            h, labels = x[start : start + 32], target[start : start + 32]
            for weight, v in zip(weights, vectors, strict=True):
                loss, h = step(h, weight, None, v, labels, 2.5)
                losses.append(loss)
    return [torch.stack(losses), *weights]


def _simplex(count: int, width: int) -> Tensor:
    """A simplex of unit rows, enough for training here."""
    frame = torch.linalg.qr(torch.randn(width, count, generator=torch.Generator().manual_seed(1)))[
        0
    ]
    return torch.nn.functional.normalize((frame - frame.mean(dim=1, keepdim=True)).T, dim=1)


def test_twenty_steps_on_digits_stay_with_the_reference() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.from_numpy(data.data).float() / 16
    target = torch.from_numpy(data.target).long()
    kernel = _train("triton", x, target, sk.linear_sgd_)
    expected = _train("reference", x, target, sk.linear_sgd_)
    assert expected[0][-2:].mean() < expected[0][:2].mean() - 0.05
    for now, then in zip(kernel, expected, strict=True):
        torch.testing.assert_close(now, then, rtol=1e-4, atol=1e-5)
