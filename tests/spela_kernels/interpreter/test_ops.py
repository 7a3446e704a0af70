"""Every op's Triton kernels in the interpreter against float64, by the rule of `proof/parity.py`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.errors import OutOfResources

import spela_kernels as sk
from spela_kernels.gpu import launching
from spela_kernels.gpu.fallback import warn_of_fallback
from spela_kernels.gpu.formulas import acos
from spela_kernels.linear import parity as linear
from spela_kernels.linear.types import NO_BUFFERS, Parameters
from spela_kernels.projection import parity as projection
from spela_kernels.proof.parity import Case, counted_launches, mismatches
from spela_kernels.rules import SgdRule, Step

CASES: dict[str, Case] = {
    f"{op}-{name}": case
    for op, cases in (("linear", linear.CASES), ("projection", projection.CASES))
    for name, case in cases.items()
}
LONG_ROWS = projection.Case((5, 2, 7, 513, 3, 4), "mse")  # more than a tile holds


def _backend(case: Case) -> ModuleType:
    return import_module(f"spela_kernels.{case.op}.triton_backend")


def _reference(case: Case) -> ModuleType:
    return import_module(f"spela_kernels.{case.op}.reference")


@pytest.fixture(autouse=True)
def _outputs_start_as_nan() -> Iterator[None]:
    """torch fills what it allocates with NaN in this mode."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_tensor_is_as_close_to_float64_as_the_reference(case: Case) -> None:
    assert mismatches(_backend(case), case) == []


def test_rows_without_direction_have_no_gradient() -> None:
    case = CASES["projection-zero-rows"]
    results = case.run(_backend(case), torch.float32)
    assert (results["gradient.z"][::4] == 0).all()
    assert (results["forward.cosine"][::4] == 0).all()
    assert (results["gradient.z"][1, 1] == 0).all()
    assert (results["gradient.z"][1, 0] != 0).any()


@pytest.mark.parametrize("name", ["linear-primes-no-bias", "projection-block-plus-1"])
def test_short_rows_have_no_direction(name: str) -> None:
    case = CASES[name]
    call, backend = case.call(torch.float32), _backend(case)
    short = call._replace(**{call._fields[0]: 1e-16 * call[0]})
    scores = [
        backend.scores(c)[1] if case.op == "linear" else backend.scores(c) for c in (call, short)
    ]
    assert scores[0].abs().max() > 0.1
    assert not scores[1].any()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear-paper-head-fp16", "forward finalise update"),
        ("linear-block-plus-1", "forward finalise update"),
        ("linear-prelu", "forward finalise update"),
        ("projection-mixed", "forward update"),
        ("projection-block-plus-1", "forward classes gradient update"),
    ],
)
def test_the_launches_of_a_step(name: str, expected: str) -> None:
    case = CASES[name]
    none = NO_BUFFERS if case.op == "linear" else None
    with counted_launches() as names:
        _backend(case).step_(case.call(case.dtype), Step(SgdRule(), torch.tensor(0.1), none, none))
    assert names == [f"{kernel}_kernel" for kernel in expected.split()]
    assert len(names) == case.launches


@pytest.mark.parametrize("op", ["linear", "projection"])
def test_shuffled_programs_give_the_same_bits(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[f"{op}-several-blocks"]
    straight = case.run(_backend(case), case.dtype)
    builder, orders = interpreter.interpreter_builder, []
    set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx

    def shuffle(x: int, y: int, z: int) -> None:
        orders[:] = [torch.randperm(x).tolist()]
        set_dim(x, y, z)

    monkeypatch.setattr(builder, "set_grid_dim", shuffle)
    monkeypatch.setattr(builder, "set_grid_idx", lambda x, y, z: set_idx(orders[0][x], y, z))
    shuffled = case.run(_backend(case), case.dtype)
    assert len(orders[0]) > 1
    for key, tensor in straight.items():
        assert torch.equal(tensor, shuffled[key]), key


def _with_bad_labels(call: Any) -> tuple[Any, Any, Tensor]:
    """The call with labels that are none in two rows; the call without these rows; which rows are left."""
    bad = call.target.clone()
    bad[2], bad[7] = 5, -(2**40)
    keep = torch.tensor([row not in (2, 7) for row in range(12)])
    kept = call._replace(**{call._fields[0]: call[0][keep]}, target=call.target[keep])
    return call._replace(target=bad), kept, keep


@pytest.mark.parametrize("objective", ["log", "softmax"])
def test_a_label_out_of_range_gives_a_nan_loss_and_teaches_a_layer_nothing(objective: str) -> None:
    """On a GPU nobody reads the labels: the kernels must neither follow them nor hide them."""
    case = linear.Case((12, 20, 18, 5), objective, "leaky_relu")
    call, kept, keep = _with_bad_labels(case.call(torch.float32))
    reference, lr = _reference(case), torch.tensor(0.5)
    expected = reference.backward(kept, reference.forward(kept))
    stepped = Parameters(*(None if p is None else p.clone() for p in call.params))  # type: ignore[arg-type]
    step = Step(SgdRule(), lr, NO_BUFFERS, NO_BUFFERS)
    loss, _ = _backend(case).step_(call._replace(params=stepped), step)
    assert loss.isnan()
    share = lr * keep.sum() / 12  # the mean stays over the whole batch
    torch.testing.assert_close(stepped.weight, call.params.weight - share * expected.weight)


@pytest.mark.parametrize("objective", ["mse", "softmax"])
def test_a_label_out_of_range_gives_a_nan_loss_and_teaches_a_projection_nothing(
    objective: str,
) -> None:
    case = projection.Case((12, 3, 20, 18, 4, 5), objective)
    call, kept, keep = _with_bad_labels(case.call(torch.float32))
    reference, lr = _reference(case), torch.tensor(0.5)
    expected = reference.backward(kept, reference.forward(kept))
    stepped = call.projection.clone()
    loss, dz = _backend(case).step_(
        call._replace(projection=stepped), Step(SgdRule(), lr, None, None)
    )
    assert loss.isnan()
    share = keep.sum() / 12  # the mean stays over the whole batch
    assert (dz[~keep] == 0).all()
    torch.testing.assert_close(dz[keep], share * expected.z)
    torch.testing.assert_close(stepped, call.projection - lr * share * expected.projection)


@pytest.mark.parametrize("objective", ["mse", "softmax"])
def test_a_group_out_of_range_gives_a_nan_loss_and_is_not_followed(objective: str) -> None:
    case = projection.Case((12, 3, 20, 18, 4, 5), objective)
    call = case.call(torch.float32)
    call.groups[1] = 2**40
    stepped = call.projection.clone()
    loss, dz = _backend(case).step_(
        call._replace(projection=stepped), Step(SgdRule(), torch.tensor(0.5), None, None)
    )
    assert loss.isnan()
    assert dz.isfinite().all()
    assert torch.equal(stepped[1], call.projection[1])


@pytest.mark.parametrize(
    ("case", "strides"),
    [
        (linear.Case((3, 8, 5, 2), "log", "leaky_relu", dtype=torch.float16), (1,)),
        (projection.Case((3, 2, 8, 5, 2, 3), "mse", dtype=torch.float16), (8, 1)),
    ],
    ids=["linear", "projection"],
)
def test_addresses_beyond_32_bits(case: Case, strides: tuple[int, ...]) -> None:
    """Samples 2^30 elements apart in a reservation of which only the touched pages ever exist."""
    torch.use_deterministic_algorithms(False)  # filling would touch all of it
    near = case.call(torch.float16)
    far, size = 2**30 + 64, near[0][0].numel()
    samples = torch.empty(2 * far + size, dtype=torch.float16)
    samples = samples.as_strided(near[0].shape, (far, *strides))
    samples.copy_(near[0])
    call, backend = near._replace(**{near._fields[0]: samples}), _backend(case)
    gradients = backend.backward(call, backend.forward(call))
    for ours, expected in zip(
        gradients, backend.backward(near, backend.forward(near)), strict=True
    ):
        if ours is not None:
            assert torch.equal(ours, expected)
            assert ours.abs().max() > 0


@pytest.mark.parametrize("name", ["linear-strided", "projection-strided"])
@pytest.mark.parametrize("times", [1, 10**6], ids=["smaller tile", "reference"])
def test_out_of_resources_falls_back_once_told(
    name: str, times: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`run` runs out of shared memory the first `times` calls."""
    warn_of_fallback.cache_clear()
    calls, run = [0], launching.run

    def maybe(*args: Any) -> None:
        calls[0] += 1
        if calls[0] <= times:
            raise OutOfResources(200_000, 100_000, "shared memory")
        run(*args)

    monkeypatch.setattr(launching, "run", maybe)
    case = CASES[name]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            results = case.run(_backend(case), case.dtype)
    same = case.run(_reference(case), case.dtype)
    for key, tensor in results.items():
        torch.testing.assert_close(tensor, same[key], msg=key)
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
    case = CASES["linear-ones"]
    assert mismatches(_backend(case), case) == []
    assert interpreter._patch_lang_tensor is prepare_as_3_6  # others find Triton as they left it


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((CASES[f"{op}-zero-rows"], torch.float64) for op in ("linear", "projection")),
        *((CASES[f"{op}-zero-rows"], torch.bfloat16) for op in ("linear", "projection")),
        (LONG_ROWS, torch.float32),
    ],
)
def test_float64_bfloat16_and_very_long_rows_run_on_the_reference_here(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "run", lambda *args: pytest.fail("launched"))
    kernel, same = case.run(_backend(case), dtype), case.run(_reference(case), dtype)
    assert all(torch.equal(kernel[name], same[name]) for name in same)


def _train(backend: str, x: Tensor, target: Tensor, step: Callable[..., Any]) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    weights = [torch.randn(o, i, generator=g) / i**0.5 for o, i in ((32, 64), (24, 32))]
    vectors = [_simplex(10, w.shape[0]) for w in weights]
    losses = []
    with sk.use_backend(backend):
        for start in range(0, 10 * 32, 32):
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


def test_ten_steps_on_digits_stay_with_the_reference() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.from_numpy(data.data).float() / 16
    target = torch.from_numpy(data.target).long()
    kernel = _train("triton", x, target, sk.linear_sgd_)
    expected = _train("reference", x, target, sk.linear_sgd_)
    assert expected[0][-2:].mean() < expected[0][:2].mean() - 0.05
    for now, then in zip(kernel, expected, strict=True):
        torch.testing.assert_close(now, then, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "limit"),
    [
        (projection.Case((3, 1, 4, 2**9 + 1, 2, 3), "mse"), "512 dimensions"),
        (projection.Case((2, 1, 4, 3, 2, 2**20 + 1), "softmax"), "1048576 classes"),
    ],
    ids=["dimensions", "classes"],
)
def test_a_projection_too_large_for_a_kernel_runs_on_the_reference(
    case: Case, limit: str, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_fallback.cache_clear()
    other = CASES["linear-zero-rows"]
    with caplog.at_level(logging.WARNING):
        kernel = case.run(_backend(case), case.dtype)
        for _ in range(2):  # reasons that take turns are told once each
            _backend(other).forward(other.call(torch.float64))
            _backend(case).scores(case.call(case.dtype))
    same = case.run(_reference(case), case.dtype)
    assert all(torch.equal(kernel[name], same[name]) for name in same)
    told = [record.getMessage() for record in caplog.records]
    assert [limit in message for message in told] == [True, False]


@triton.jit
def _acos_kernel(c_ptr, y_ptr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, acos(tl.load(c_ptr + offs)))


def test_acos_is_as_close_as_it_says() -> None:
    c = torch.linspace(-1, 1, 1 << 17)
    found = torch.empty_like(c)
    _acos_kernel[(128,)](c, found, BLOCK=1024)
    error = (found.double() - c.double().acos()).abs()
    assert error.max() <= 3.4e-7


@pytest.mark.parametrize("objective", ["log", "mse", "softmax"])
@pytest.mark.parametrize("length", [1e-4, 1e-5, 1e-6])
def test_a_short_row_in_float16_spoils_no_weight(objective: str, length: float) -> None:
    """Its gradient, 1 / |y| long, is beyond float16: infinity times another row's 0 would be NaN."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(50, 24, generator=g)
    x[0] *= length
    x[1] = 0
    weight, target = torch.randn(20, 24, generator=g) / 5, torch.randint(6, (50,), generator=g)
    vectors = torch.nn.functional.normalize(torch.randn(6, 20, generator=g), dim=1)
    for backend in ("triton", "reference", "cpu"):
        with sk.use_backend(backend):
            own = weight.half().requires_grad_()
            loss, _ = sk.linear_loss(
                x.half(), own, None, vectors.half(), target, objective=objective
            )
            loss.backward()
            assert torch.isfinite(own.grad).all(), backend
            z = torch.cat([x, x], dim=1).view(50, 2, 24).half().requires_grad_()
            projection = weight.mT.expand(2, 24, 20).half().requires_grad_()
            groups = torch.arange(6).expand(2, 6)
            loss = sk.projection_loss(
                z, projection, vectors.expand(2, 6, 20).half(), groups, target, objective=objective
            )
            loss.backward()
            assert torch.isfinite(projection.grad).all(), backend
            assert torch.isfinite(z.grad).all(), backend


@pytest.mark.parametrize("objective", ["log", "softmax"])
def test_columns_beyond_the_outputs_leave_an_infinite_input_s_row_alone(objective: str) -> None:
    """Seven outputs: infinity times the weights of none in the tile's eighth column is NaN."""
    x = torch.tensor([[float("inf"), 0.5], [0.25, 1.0]])
    weight, vectors = torch.ones(7, 2), torch.eye(7)[:3]
    values = []
    for backend in ("triton", "reference"):
        with sk.use_backend(backend):
            loss, _ = sk.linear_loss(
                x,
                weight,
                None,
                vectors,
                torch.tensor([0, 1]),
                activation="tanh",
                objective=objective,
            )
        values.append(loss)
    torch.testing.assert_close(*values)
    assert torch.isfinite(values[0])
