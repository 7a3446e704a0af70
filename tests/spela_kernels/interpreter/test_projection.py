"""The projection's Triton kernels in the interpreter against the float64 oracle, by the rule of two errors.

|kernel - float64 oracle| <= 2 |reference in the same dtype - oracle| + floor, for every tensor.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
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
from spela_kernels.projection import launch, reference, triton_backend
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
    sizes: tuple[int, int, int, int, int, int]  # B, K, D, d, G, C
    objective: str
    rule: str = "sgd"
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    mixed: bool = False  # z in `dtype` under float32 parameters


CASES = {
    "ones": Case((1, 1, 1, 1, 1, 1), "mse"),
    "ones-softmax-fp16": Case((1, 1, 1, 1, 1, 1), "softmax", "adam", torch.float16),
    "primes": Case((7, 3, 13, 5, 2, 11), "angular", "momentum"),
    "block-plus-1": Case((33, 2, 65, 65, 17, 19), "softmax", "nesterov"),
    "block-minus-1": Case((31, 3, 63, 63, 15, 15), "euclidean", "adam"),
    "paper-fp16": Case((20, 4, 36, 100, 9, 10), "mse", "adam", torch.float16),
    "several-blocks": Case((70, 2, 100, 36, 3, 10), "log", "momentum"),
    "several-blocks-fp16": Case((70, 2, 100, 36, 40, 50), "softmax", "sgd", torch.float16),
    "long-rows": Case((18, 2, 20, 200, 3, 7), "softmax", "sgd"),
    "many-classes": Case((6, 2, 24, 20, 5, 1030), "softmax"),
    "many-kernels": Case((2, 33, 9, 16, 4, 600), "softmax", "adam"),
    "strided": Case((18, 3, 24, 40, 4, 6), "cosine", "momentum", layout="strided"),
    "strided-fp16": Case((18, 3, 24, 40, 4, 6), "softmax", "adam", torch.float16, "strided"),
    "mixed": Case((18, 3, 24, 40, 4, 6), "mse", "adam", torch.float16, mixed=True),
    "mixed-softmax": Case((18, 3, 24, 40, 4, 6), "softmax", "sgd", torch.float16, mixed=True),
    "zero-rows": Case((18, 3, 24, 20, 4, 6), "log", layout="zero rows"),
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


def _tensors(case: Case, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """z, projection, vectors, groups, target."""
    batch, kernels, size, dim, count, classes = case.sizes
    g = torch.Generator().manual_seed(3)
    z = torch.randn(batch, kernels, size, generator=g)
    projection = torch.randn(kernels, size, dim, generator=g) / size**0.5
    vectors = torch.nn.functional.normalize(torch.randn(kernels, count, dim, generator=g), dim=2)
    groups = torch.randint(count, (kernels, classes), generator=g)
    target = torch.randint(classes, (batch,), generator=g)
    if case.layout == "zero rows":
        z[::4] = 0
        z[1, 1] = 0
    # Rounded to the case's dtype first: oracle and kernel start from the same numbers.
    wide = torch.promote_types(dtype, torch.float32) if case.mixed else dtype
    z = z.to(case.dtype).to(dtype)
    projection, vectors = (
        t.to(torch.float32 if case.mixed else case.dtype).to(wide) for t in (projection, vectors)
    )
    if case.layout == "strided":
        z, target = z.permute(1, 2, 0).contiguous().permute(2, 0, 1), _every_second(target)
        projection, vectors = projection.mT.contiguous().mT, _every_second(vectors)
        groups = groups.T.contiguous().T
    return z, projection, vectors, groups, target


def _buffer(projection: Tensor, seed: int) -> Tensor:
    """Optimizer state in at least float32, as the optimizers keep it."""
    g = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(projection.dtype, torch.float32)
    return 0.01 * torch.rand(projection.shape, generator=g).to(wide)


def _run(backend: ModuleType, case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything the op computes: scores, forward, gradients, and a step with its state."""
    z, projection, vectors, groups, target = tensors = _tensors(case, dtype)
    settings = Settings(objective=case.objective)
    before = [t.clone() for t in tensors]
    results: dict[str, Tensor] = {}

    def note(group: str, **tensors: Tensor) -> None:
        results.update({f"{group}.{name}": tensor for name, tensor in tensors.items()})

    note("forward", scores=backend.scores(z, projection, vectors, groups))
    saved = backend.forward(*tensors, settings)
    grad_loss = torch.tensor(2.0, dtype=torch.promote_types(dtype, torch.float32))
    gradient = backend.backward(*tensors, settings, saved, grad_loss)
    note("forward", **saved._asdict())
    note("gradient", **gradient._asdict())
    for now, then in zip(tensors, before, strict=True):
        assert torch.equal(now, then), "a read-only tensor changed"

    first, second = _buffer(projection, 1), _buffer(projection, 2)
    lr, rule = torch.tensor(0.1, dtype=grad_loss.dtype), RULES[case.rule]
    if isinstance(rule, AdamRule):
        step = torch.tensor(3.0, dtype=lr.dtype)
        loss, dz = backend.adam_step_(*tensors, settings, first, second, step, lr, rule)
        note("state", second=second)
    else:
        buffer = first if rule.momentum else None
        loss, dz = backend.sgd_step_(*tensors, settings, buffer, lr, rule)
    note("state", first=first)
    note("step", loss=loss, dz=dz, projection=projection)
    assert not torch.equal(projection, before[1])
    for now, then in zip((z, vectors, groups, target), (before[0], *before[2:]), strict=True):
        assert torch.equal(now, then), "the step changed an input"
    return results


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_tensor_is_as_close_to_float64_as_the_reference(case: Case) -> None:
    kernel = _run(triton_backend, case, case.dtype)
    oracle = _run(reference, case, torch.float64)
    same = _run(reference, case, case.dtype)
    assert kernel.keys() == same.keys()
    for name, exact in oracle.items():
        assert kernel[name].dtype == same[name].dtype, name
        error = (kernel[name].double() - exact).abs()
        allowed = 2 * (same[name].double() - exact).abs().max()
        floor = FLOOR[case.dtype] * (1 + exact.abs().max())
        assert (error <= allowed + floor).all(), (
            f"{name}: error {error.max():.2e}, allowed {allowed:.2e} + {floor:.2e}"
        )


def test_rows_without_direction_have_no_gradient() -> None:
    results = _run(triton_backend, CASES["zero-rows"], torch.float32)
    assert (results["gradient.z"][::4] == 0).all()
    assert (results["forward.cosine"][::4] == 0).all()
    assert (results["gradient.z"][1, 1] == 0).all()
    assert (results["gradient.z"][1, 0] != 0).any()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mixed", ["forward", "update"]),
        ("block-plus-1", ["forward", "classes", "gradient", "update"]),
    ],
)
def test_the_launches_of_a_step(
    name: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    run = launch.run

    def counting(arch: Architecture, kernel: Any, *args: Any) -> None:
        names.append(kernel.__name__.removesuffix("_kernel"))
        run(arch, kernel, *args)

    monkeypatch.setattr(launch, "run", counting)
    case = CASES[name]
    settings = Settings(objective=case.objective)
    triton_backend.sgd_step_(
        *_tensors(case, case.dtype), settings, None, torch.tensor(0.1), SgdRule()
    )
    assert names == expected


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


@pytest.mark.parametrize("objective", ["mse", "softmax"])
def test_a_label_out_of_range_gives_a_nan_loss_and_teaches_nothing(objective: str) -> None:
    """On a GPU nobody reads the labels: the kernels must neither follow them nor hide them."""
    settings = Settings(objective=objective)
    z, projection, *fixed, target = _tensors(Case((12, 3, 20, 18, 4, 5), objective), torch.float32)
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
    z, projection, vectors, groups, target = _tensors(
        Case((12, 3, 20, 18, 4, 5), objective), torch.float32
    )
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
    near, *rest = _tensors(Case((3, 2, 8, 5, 2, 3), "mse", dtype=torch.float16), torch.float16)
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
            results = _run(triton_backend, case, case.dtype)
    same = _run(reference, case, case.dtype)
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
        kernel, same = _run(triton_backend, case, dtype), _run(reference, case, dtype)
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
