"""The Triton kernels in the interpreter against the float64 oracle, by the rule of two errors.

|kernel - float64 oracle| <= 2 |reference in the same dtype - oracle| + floor, for every tensor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.errors import OutOfResources

import spela_kernels as sk
from spela_kernels.architectures import Architecture
from spela_kernels.contracts import Settings
from spela_kernels.guarding import warn_of_fallback
from spela_kernels.linear import launch, reference, triton_backend
from spela_kernels.linear.types import Parameters
from spela_kernels.rules import AdamRule, SgdRule

# Rounding that the reference happens to escape: units of the result's own size, per dtype.
FLOOR = {torch.float32: 5e-7, torch.float16: 1e-4}
RULES = {
    "sgd": SgdRule(weight_decay=1e-3),
    "momentum": SgdRule(momentum=0.9, weight_decay=1e-3),
    "nesterov": SgdRule(momentum=0.9, nesterov=True),
    "adam": AdamRule(beta2=0.99, weight_decay=1e-3),
}


@dataclass(frozen=True)
class Case:
    sizes: tuple[int, int, int, int]  # B, I, O, C
    objective: str
    activation: str
    rule: str = "sgd"
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    params_dtype: torch.dtype | None = None  # None: the case's dtype


CASES = {
    "ones": Case((1, 1, 1, 1), "log", "leaky_relu"),
    "ones-softmax-fp16": Case((1, 1, 1, 1), "softmax", "prelu", "adam", torch.float16),
    "primes-no-bias": Case((7, 13, 5, 3), "angular", "tanh", "momentum", layout="no bias"),
    "block-plus-1": Case((33, 65, 65, 17), "softmax", "gelu", "nesterov"),
    "block-minus-1": Case((31, 63, 63, 15), "euclidean", "elu", "adam"),
    "paper-head-fp16": Case((50, 96, 10, 10), "log", "leaky_relu", "sgd", torch.float16),
    "several-blocks": Case((130, 136, 72, 10), "log", "leaky_relu", "momentum"),
    "several-blocks-fp16": Case((70, 136, 72, 40), "softmax", "relu", "sgd", torch.float16),
    "many-classes": Case((10, 24, 20, 1030), "softmax", "identity"),
    "prelu": Case((20, 40, 34, 5), "mse", "prelu", "adam"),
    "strided": Case((18, 24, 40, 6), "cosine", "leaky_relu", "momentum", layout="strided"),
    "strided-fp16": Case((18, 24, 40, 6), "softmax", "prelu", "adam", torch.float16, "strided"),
    "mixed": Case(
        (18, 24, 40, 6), "softmax", "prelu", "momentum", torch.float16, params_dtype=torch.float32
    ),
    "mixed-label": Case(
        (33, 65, 34, 5), "log", "gelu", "adam", torch.float16, params_dtype=torch.float32
    ),
    "zero-rows": Case((18, 24, 20, 6), "log", "leaky_relu", layout="zero rows"),
}


@pytest.fixture(autouse=True)
def _outputs_start_as_nan() -> Iterator[None]:
    """torch fills what it allocates with NaN in this mode."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _every_second(tensor: Tensor) -> Tensor:
    """The same values at strides that are twice as long along the last axis."""
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def _tensors(case: Case, dtype: torch.dtype) -> tuple[Tensor, Parameters, Tensor, Tensor]:
    batch, inputs, outputs, classes = case.sizes
    g = torch.Generator().manual_seed(3)
    x = torch.randn(batch, inputs, generator=g)
    weight = torch.randn(outputs, inputs, generator=g) / inputs**0.5
    bias = 0.1 * torch.randn(outputs, generator=g)
    vectors = torch.nn.functional.normalize(torch.randn(classes, outputs, generator=g), dim=1)
    target = torch.randint(classes, (batch,), generator=g)
    if case.layout == "zero rows":
        x[::4], bias = 0, torch.zeros_like(bias)
    # Rounded to the case's dtype first: oracle and kernel start from the same numbers.
    x = x.to(case.dtype).to(dtype)
    own = case.params_dtype or case.dtype
    dtype = torch.promote_types(own, dtype)
    weight, bias, vectors = (t.to(own).to(dtype) for t in (weight, bias, vectors))
    if case.layout == "strided":
        x, weight, bias = _every_second(x), weight.t().contiguous().t(), _every_second(bias)
        vectors, target = vectors.t().contiguous().t(), _every_second(target)
    slope = torch.tensor([0.25], dtype=dtype) if case.activation == "prelu" else None
    return x, Parameters(weight, None if case.layout == "no bias" else bias, slope), vectors, target


def _buffers(params: Parameters, seed: int, dtype: torch.dtype) -> Parameters:
    """Optimizer state in at least float32, as the optimizers keep it."""
    g = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    weight, bias, slope = (
        None if p is None else 0.01 * torch.rand(p.shape, generator=g).to(wide) for p in params
    )
    return Parameters(weight, bias, slope)


def _run(backend: ModuleType, case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything a layer computes: scores, forward, gradients, and a step with its state."""
    x, params, vectors, target = _tensors(case, dtype)
    settings = Settings(case.activation, objective=case.objective)
    before = [t.clone() for t in (x, vectors, target, *params) if t is not None]
    results: dict[str, Tensor] = {}

    def note(group: str, **tensors: Tensor | None) -> None:
        results.update({f"{group}.{k}": t for k, t in tensors.items() if t is not None})

    _, scores = backend.scores(x, params, vectors, settings)
    saved = backend.forward(x, params, vectors, target, settings)
    grad_loss = torch.tensor(2.0, dtype=torch.promote_types(dtype, torch.float32))
    gradient = backend.backward(x, params, vectors, target, settings, saved, grad_loss)
    note("forward", scores=scores, **saved._asdict())
    note("gradient", **gradient._asdict())
    for now, then in zip((x, vectors, target, *params), before, strict=False):
        if now is not None:
            assert torch.equal(now, then), "a read-only tensor changed"

    first, second = _buffers(params, 1, dtype), _buffers(params, 2, dtype)
    lr, rule = torch.tensor(0.1, dtype=grad_loss.dtype), RULES[case.rule]
    tensors = (x, params, vectors, target, settings)
    if isinstance(rule, AdamRule):
        step = torch.tensor(3.0, dtype=lr.dtype)
        loss, y = backend.adam_step_(*tensors, first, second, step, lr, rule)
        note("second", **second._asdict())
    else:
        buffers = first if rule.momentum else None
        loss, y = backend.sgd_step_(*tensors, buffers, lr, rule)
    note("step", loss=loss, y=y)
    note("first", **first._asdict())
    note("updated", **params._asdict())
    for now, then in zip((x, vectors, target), before, strict=False):
        assert torch.equal(now, then), "the step changed an input"
    return results


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_tensor_is_as_close_to_float64_as_the_reference(case: Case) -> None:
    kernel = _run(triton_backend, case, case.dtype)
    oracle = _run(reference, case, torch.float64)
    same = _run(reference, case, case.dtype)
    assert kernel.keys() == same.keys()
    for name, exact in oracle.items():
        error = (kernel[name].double() - exact).abs()
        allowed = 2 * (same[name].double() - exact).abs().max() if exact.numel() else 0.0
        floor = FLOOR[case.dtype] * (1 + exact.abs().max()) if exact.numel() else 0.0
        assert (error <= allowed + floor).all(), (
            f"{name}: error {error.max():.2e}, allowed {allowed:.2e} + {floor:.2e}"
        )


def _count_launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    run = launch.run

    def counting(arch: Architecture, kernel: Any, *args: Any) -> None:
        names.append(kernel.__name__)
        run(arch, kernel, *args)

    monkeypatch.setattr(launch, "run", counting)
    return names


@pytest.mark.parametrize(
    "case",
    [CASES["paper-head-fp16"], CASES["block-plus-1"], CASES["prelu"]],
    ids=["label", "softmax", "prelu"],
)
def test_a_step_is_three_launches(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    names = _count_launches(monkeypatch)
    x, params, vectors, target = _tensors(case, case.dtype)
    settings = Settings(case.activation, objective=case.objective)
    triton_backend.sgd_step_(
        x, params, vectors, target, settings, None, torch.tensor(0.1), SgdRule()
    )
    assert names == ["forward_kernel", "finalise_kernel", "update_kernel"]


@pytest.mark.parametrize("name", ["several-blocks", "block-plus-1"])
def test_shuffled_programs_give_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = _run(triton_backend, CASES[name], CASES[name].dtype)
    builder, orders = interpreter.interpreter_builder, []
    set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx

    def shuffle(x: int, y: int, z: int) -> None:
        orders[:] = [torch.randperm(x).tolist()]
        set_dim(x, y, z)

    monkeypatch.setattr(builder, "set_grid_dim", shuffle)
    monkeypatch.setattr(builder, "set_grid_idx", lambda x, y, z: set_idx(orders[0][x], y, z))
    shuffled = _run(triton_backend, CASES[name], CASES[name].dtype)
    assert len(orders[0]) > 1
    for key, tensor in straight.items():
        assert torch.equal(tensor, shuffled[key]), key


@pytest.mark.parametrize("objective", ["log", "softmax"])
def test_a_label_out_of_range_gives_a_nan_loss_and_teaches_nothing(objective: str) -> None:
    """On a GPU nobody reads the labels: the kernels must neither follow them nor hide them."""
    case = Case((12, 20, 18, 5), objective, "leaky_relu")
    settings = Settings(objective=objective)
    x, params, vectors, target = _tensors(case, torch.float32)
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
    near, params, vectors, target = _tensors(case, torch.float16)
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
            results = _run(triton_backend, case, case.dtype)
    same = _run(reference, case, case.dtype)
    for name, tensor in results.items():
        torch.testing.assert_close(tensor, same[name], msg=name)
    assert calls[0] > times or times > 1
    assert len(caplog.records) == (0 if times == 1 else 1)


def test_float64_and_bfloat16_run_on_the_reference_here() -> None:
    warn_of_fallback.cache_clear()
    case = CASES["zero-rows"]
    for dtype in (torch.float64, torch.bfloat16):
        kernel, same = _run(triton_backend, case, dtype), _run(reference, case, dtype)
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
