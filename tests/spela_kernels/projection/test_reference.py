"""The projection's oracle itself: closed form against autograd of the broadcast formula, and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import spela_kernels as sk
from spela_kernels.contracts import Settings
from spela_kernels.projection import reference
from spela_kernels.projection.types import Call
from tests.spela_kernels.torch_wordings import CLASS_LOSS, LABEL_LOSS, SGD

# B, K, D, d, and the number of groups of each kernel; 5 classes (as many groups at most)
CASES = {
    "odd": (7, 3, 5, 6, (2, 5, 3)),
    "one_sample": (1, 2, 4, 3, (3, 2)),
    "one_kernel": (6, 1, 9, 4, (4,)),
    "one_pixel": (5, 3, 1, 4, (2, 3, 2)),
    "one_dimension": (5, 3, 4, 1, (2, 2, 2)),
    "one_group": (5, 3, 4, 3, (1, 1, 1)),
}
CLASSES = 5


def _problem(case: str = "odd", dtype: torch.dtype = torch.float64) -> list[Tensor]:
    samples, kernels, size, dim, counts = CASES[case]
    g = torch.Generator().manual_seed(sum(map(ord, case)))
    z = torch.randn(samples, kernels, size, generator=g, dtype=torch.float64)
    projection = torch.randn(kernels, size, dim, generator=g, dtype=torch.float64)
    vectors = torch.zeros(kernels, max(counts), dim, dtype=torch.float64)
    groups = torch.empty(kernels, CLASSES, dtype=torch.int64)
    for k, count in enumerate(counts):
        rows = torch.randn(count, dim, generator=g, dtype=torch.float64)
        vectors[k, :count] = torch.nn.functional.normalize(rows, dim=1)
        groups[k] = torch.arange(CLASSES)[torch.randperm(CLASSES, generator=g)] % count
    target = torch.randint(CLASSES, (samples,), generator=g)
    return [a.to(dtype) for a in (z, projection, vectors)] + [groups, target]


def _broadcast_cosines(z: Tensor, projection: Tensor, vectors: Tensor, groups: Tensor) -> Tensor:
    """(B, K, C) by the formula as the paper writes it, every product spelt out."""
    p = (z[:, :, None, :] @ projection[None]).squeeze(2)  # (B, K, d)
    kernel = torch.arange(len(groups))[:, None]
    class_vectors = vectors[kernel, groups]  # (K, C, d)
    return torch.nn.functional.cosine_similarity(p[:, :, None], class_vectors[None], dim=3)


def _torch_loss(name: str, cosines: Tensor, target: Tensor, scale: float) -> Tensor:
    if name in CLASS_LOSS:
        return CLASS_LOSS[name](cosines.mean(1), target, scale).mean()
    return LABEL_LOSS[name](cosines[torch.arange(len(target)), :, target]).mean()


@pytest.mark.parametrize("objective", sk.OBJECTIVES)
@pytest.mark.parametrize("case", CASES)
def test_loss_scores_and_gradients_equal_autograd_of_the_formula(case: str, objective: str) -> None:
    if case == "one_dimension" and objective in ("angular", "euclidean"):
        pytest.skip("in one dimension every cosine is a pole of these derivatives")
    z, projection, vectors, groups, target = _problem(case)
    z.requires_grad_()
    projection.requires_grad_()
    cosines = _broadcast_cosines(z, projection, vectors, groups)
    expected = _torch_loss(objective, cosines, target, 3.0)
    dz, dprojection = torch.autograd.grad(expected, (z, projection))

    tensors = (z, projection, vectors, groups)
    loss, gradient = sk.projection_gradient(*tensors, target, objective=objective, scale=3.0)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient.z, dz, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient.projection, dprojection, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        scores = sk.projection_forward(*tensors)
    torch.testing.assert_close(scores, cosines.detach().mean(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("objective", sk.OBJECTIVES)
def test_gradcheck_of_the_registered_loss(objective: str) -> None:
    z, projection, vectors, groups, target = _problem()

    def loss(z: Tensor, projection: Tensor) -> Tensor:
        return sk.projection_loss(
            z, projection, vectors, groups, target, objective=objective, scale=3.0
        )

    assert torch.autograd.gradcheck(loss, (z.requires_grad_(), projection.requires_grad_()))


def test_one_sample_worked_by_hand() -> None:
    # Kernel 0: p = (3, 4), cosine to (1, 0) 0.6; kernel 1: p = (4, 3), class 0 in group 1, cosine 0.6.
    z = torch.ones(1, 2, 1, dtype=torch.float64)
    projection = torch.tensor([[[3.0, 4.0]], [[4.0, 3.0]]], dtype=torch.float64)
    vectors = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    groups, target = torch.tensor([[0, 1, 1], [1, 0, 1]]), torch.tensor([0])
    scores = sk.projection_forward(z, projection, vectors, groups)
    assert scores.flatten().tolist() == pytest.approx([0.6, 0.8, 0.7], abs=1e-12)
    loss, gradient = sk.projection_gradient(z, projection, vectors, groups, target)
    assert loss.item() == pytest.approx(0.16, abs=1e-12)
    # f'(c) / (B K |p|) (u - c p/|p|) = -0.8 / (2 * 5) ((1, 0) - 0.6 (0.6, 0.8)), mirrored in kernel 1
    assert gradient.projection.flatten().tolist() == pytest.approx(
        [-0.0512, 0.0384, 0.0384, -0.0512], abs=1e-12
    )
    assert gradient.z.abs().max() < 1e-12  # the length of p has no influence


@pytest.mark.parametrize("objective", ["mse", "softmax"])
def test_rows_without_direction_score_zero_and_teach_nothing(objective: str) -> None:
    z, projection, vectors, groups, target = _problem()
    z[2], z[4, 1] = 0, 0
    loss, gradient = sk.projection_gradient(
        z, projection, vectors, groups, target, objective=objective
    )
    assert torch.isfinite(loss)
    assert not gradient.z[2].any()
    assert not gradient.z[4, 1].any()
    assert gradient.z[4, 0].any()
    assert torch.isfinite(gradient.projection).all()
    scores = sk.projection_forward(z, projection, vectors, groups)
    assert torch.equal(scores[2], torch.zeros(CLASSES, dtype=torch.float64))


def test_rows_beyond_a_kernels_own_groups_have_no_influence() -> None:
    z, projection, vectors, groups, target = _problem()
    other = vectors.clone()
    other[0, 2:] = 7.0  # kernel 0 has two groups
    for objective in ("mse", "softmax"):
        for ours, theirs in zip(
            sk.projection_gradient(z, projection, vectors, groups, target, objective=objective)[1],
            sk.projection_gradient(z, projection, other, groups, target, objective=objective)[1],
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_tensors_keep_float32_statistics(dtype: torch.dtype) -> None:
    *floats, groups, target = _problem(dtype=dtype)
    exact, exact_gradient = sk.projection_gradient(*(a.double() for a in floats), groups, target)
    loss, gradient = sk.projection_gradient(*floats, groups, target)
    assert loss.dtype == torch.float32
    assert sk.projection_forward(*floats, groups).dtype == torch.float32
    unit = torch.finfo(dtype).eps
    assert abs(loss.double() - exact) < 2 * unit
    for ours, theirs in zip(gradient, exact_gradient, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - theirs).abs().max() < 4 * unit * theirs.abs().max()


class _LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, list | tuple) else (result,):
            if isinstance(item, Tensor):
                self.elements = max(self.elements, item.numel())
        return result


@pytest.mark.parametrize("objective", ["mse", "softmax"])
def test_nothing_grows_with_samples_times_parameters(objective: str) -> None:
    samples, kernels, size, dim, classes = 32, 4, 12, 10, 10
    z, projection = torch.randn(samples, kernels, size), torch.randn(kernels, size, dim)
    vectors = torch.randn(kernels, classes, dim)
    groups = torch.arange(classes).expand(kernels, classes)
    target = torch.arange(samples) % classes
    call = Call(z, projection, vectors, groups, target, Settings(objective=objective))
    with _LargestTensor() as seen:
        reference.backward(call, reference.forward(call))
        reference.scores(call)
    assert 0 < seen.elements <= max(z.numel(), projection.numel(), samples * kernels * dim)


def _step_case() -> tuple[list[Tensor], Tensor, Tensor]:
    z, projection, vectors, groups, target = _problem()
    ours, theirs = projection.clone(), projection.clone().requires_grad_()
    return [z, vectors, groups, target], ours, theirs


@pytest.mark.parametrize("options", SGD.values(), ids=SGD)
def test_sgd_step_is_torch_sgd(options: dict[str, Any]) -> None:
    (z, *fixed), ours, theirs = _step_case()
    optimizer = torch.optim.SGD([theirs], lr=0.3, **options)
    buffer = torch.zeros_like(ours) if options.get("momentum") else None
    for _ in range(3):
        optimizer.zero_grad()
        leaf = z.clone().requires_grad_()
        expected = sk.projection_loss(leaf, theirs, *fixed)
        expected.backward()
        optimizer.step()
        loss, dz = sk.projection_sgd_(z, ours, *fixed, 0.3, momentum_buffer=buffer, **options)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(dz, leaf.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_step_is_torch_adam(weight_decay: float) -> None:
    (z, *fixed), ours, theirs = _step_case()
    optimizer = torch.optim.Adam([theirs], lr=0.01, betas=(0.8, 0.95), weight_decay=weight_decay)
    first, second = torch.zeros_like(ours), torch.zeros_like(ours)
    for step in range(1, 4):
        optimizer.zero_grad()
        leaf = z.clone().requires_grad_()
        sk.projection_loss(leaf, theirs, *fixed, objective="softmax").backward()
        optimizer.step()
        _, dz = sk.projection_adam_(
            z, ours, *fixed, 0.01, exp_avg=first, exp_avg_sq=second, step=step,
            betas=(0.8, 0.95), weight_decay=weight_decay, objective="softmax",
        )  # fmt: skip
        torch.testing.assert_close(dz, leaf.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-9, atol=1e-12)
