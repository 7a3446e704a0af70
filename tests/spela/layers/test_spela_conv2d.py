"""SpelaConv2d against autograd of the plain formula, and as the nn.Conv2d that it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spela import SpelaConv2d, class_grouping, optim
from tests.spela.layers.small_convolutions import CLASSES, small_batch, small_layer

# Options of the layer and the map they make of 9 x 8 images
SHAPES: dict[str, dict[str, Any]] = {
    "max": {"output_size": (3, 3)},
    "avg": {"pool": "avg", "output_size": (3, 3)},
    "no_pool": {"pool": None, "output_size": (7, 6)},
    "strided": {"stride": (2, 1), "padding": (0, 2), "output_size": (2, 5)},
    "dilated": {"dilation": 2, "padding": 1, "pool_size": 3, "output_size": (2, 2)},
    "same": {"padding": "same", "output_size": (4, 4)},
    "grouped": {"groups": 2, "bias": False, "output_size": 3},
}


def _plain_cosines(layer: SpelaConv2d, y: Tensor) -> Tensor:
    """(B, K, C) by broadcasting, as the paper writes it."""
    p = (y.flatten(2)[:, :, None, :] @ layer.projection[None]).squeeze(2)
    class_vectors = layer.vectors[torch.arange(4)[:, None], layer.grouping]
    return nn.functional.cosine_similarity(p[:, :, None], class_vectors[None], dim=3)


def _plain(layer: SpelaConv2d, x: Tensor, target: Tensor, objective: str) -> tuple[Tensor, Tensor]:
    """Loss and output through torch's own functions alone."""
    y = nn.functional.conv2d(
        x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
    )
    if layer.norm is not None:
        y = nn.functional.batch_norm(
            y, None, None, layer.norm.weight, layer.norm.bias, training=True
        )
    y = nn.functional.leaky_relu(y, 1e-4)
    if layer.pool is not None:
        pool = nn.functional.max_pool2d if layer.pool == "max" else nn.functional.avg_pool2d
        y = pool(y, layer.pool_size)
    cosines = _plain_cosines(layer, y)
    c = cosines[torch.arange(len(target)), :, target]
    loss = {
        "mse": lambda: ((1 - c) ** 2).mean(),
        "log": lambda: torch.log(2 - c).mean(),
        "softmax": lambda: nn.functional.cross_entropy(20 * cosines.mean(1), target),
    }[objective]()
    return loss, y


@pytest.mark.parametrize("objective", ["mse", "log", "softmax"])
@pytest.mark.parametrize("batch_norm", [True, False], ids=["norm", "no_norm"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_autograd_of_the_plain_formula(
    shape: str, batch_norm: bool, objective: str
) -> None:
    layer = small_layer(
        batch_norm=batch_norm, objective=objective, dtype=torch.float64, **SHAPES[shape]
    )
    x, target = small_batch(torch.float64)
    expected, y = _plain(layer, x, target, objective)
    names = [name for name, _ in layer.named_parameters()]
    gradients = torch.autograd.grad(expected, list(layer.parameters()))

    loss, output = layer.local_loss(x.requires_grad_(), target)
    loss.backward()
    assert x.grad is None
    assert not output.requires_grad
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output, y, rtol=1e-12, atol=1e-12)
    assert "projection" in names
    for name, theirs in zip(names, gradients, strict=True):
        ours = layer.get_parameter(name).grad
        torch.testing.assert_close(
            ours, theirs, rtol=1e-10, atol=1e-10 * float(theirs.abs().max()) + 1e-15,
            msg=lambda m, n=name: f"{n}: {m}",
        )  # fmt: skip


def test_is_an_nn_conv2d_with_torch_layout() -> None:
    layer = small_layer()
    assert isinstance(layer, nn.Conv2d)
    assert layer.weight.shape == (4, 2, 3, 3)
    assert layer.projection.shape == (4, 9, 7)
    assert layer.vectors.shape == (4, 4, 7)  # g_k is drawn from 2..4
    assert set(layer.state_dict()) == {
        "weight", "bias", "projection", "vectors", "group_codes", "norm.weight", "norm.bias",
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    }  # fmt: skip
    assert "output_size=(3, 3)" in repr(layer)
    plain = nn.Conv2d(2, 4, 3)
    layer.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(layer.weight, plain.weight)


def test_initial_values() -> None:
    layer = SpelaConv2d(8, 64, 5, 10, (6, 6), generator=torch.Generator().manual_seed(0))
    bound = (8 * 25) ** -0.5  # nn.Conv2d: kaiming uniform with a = sqrt(5)
    for parameter in (layer.weight, layer.bias):
        assert parameter.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert layer.projection.std().item() == pytest.approx(1, rel=0.02)
    assert torch.equal(layer.norm.weight, torch.ones(64))
    counts = layer.grouping.amax(dim=1) + 1
    assert counts.min() >= 2
    assert counts.max() <= 9
    cosines = layer.vectors @ layer.vectors.mT
    for kernel, count in enumerate(counts.tolist()):
        off = cosines[kernel, :count, :count][~torch.eye(count, dtype=torch.bool)]
        torch.testing.assert_close(off, torch.full_like(off, -1 / (count - 1)))


def test_a_generator_decides_everything() -> None:
    first, second, other = small_layer(), small_layer(), small_layer(seed=2)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    for name in ("weight", "bias", "projection", "vectors", "group_codes"):
        assert not torch.equal(first.state_dict()[name], other.state_dict()[name]), name
    other.load_state_dict(first.state_dict())
    x, _ = small_batch()
    assert torch.equal(other.scores(other(x)), first.scores(first(x)))


def test_layers_can_share_a_grouping() -> None:
    first = small_layer()
    second = small_layer(seed=2, grouping=first.grouping)
    assert torch.equal(first.grouping, second.grouping)
    assert second.vectors.shape[1] == int(first.grouping.max()) + 1
    assert small_layer(grouping=3).grouping.amax(dim=1).tolist() == [2] * 4
    assert small_layer(grouping=(2, 4)).vectors.shape == (4, 3, 7)


def test_scores_are_mean_cosines() -> None:
    layer, (x, _) = small_layer().double(), small_batch(torch.float64)
    y = layer(x)
    torch.testing.assert_close(layer.scores(y), _plain_cosines(layer, y).mean(1))
    assert torch.equal(layer.scores(torch.zeros_like(y[:1])), torch.zeros(1, CLASSES).double())
    with pytest.raises(ValueError, match=r"`y` must be \(B, 4, 3, 3\)"):
        layer.scores(y.flatten(1))


def test_dtype_device_and_deepcopy() -> None:
    layer = small_layer().double()
    assert layer.projection.dtype == layer.vectors.dtype == torch.float64
    assert layer.grouping.dtype == torch.int64
    x, target = small_batch(torch.float64)
    clone = copy.deepcopy(layer)
    layer.local_step(x, target, optim.LocalSGD(layer.parameters(), lr=1.0))
    assert not torch.equal(layer.weight, clone.weight)
    meta = copy.deepcopy(layer).to("meta")
    assert meta(torch.empty(2, 2, 9, 8, device="meta", dtype=torch.float64)).shape == (2, 4, 3, 3)
    built = small_layer(device="meta")
    assert built.projection.is_meta
    assert built.grouping.is_meta


def test_autocast_of_the_local_losses() -> None:
    layer, (x, target) = small_layer(), small_batch()
    exact, _ = layer.local_loss(x, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = layer.local_loss(x, target)
    loss.backward()
    assert layer.weight.grad.dtype == torch.float32
    assert abs(loss - exact) < 4 * torch.finfo(torch.bfloat16).eps
    fused = optim.LocalSGD(layer.parameters(), lr=1.0)
    before = layer.weight.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stepped, y = layer.local_step(x, target, fused)
    torch.testing.assert_close(stepped, loss.detach())
    assert not torch.equal(layer.weight, before)
    assert layer.scores(y).dtype == layer.projection.dtype == torch.float32


def test_own_vectors_are_normalised() -> None:
    rows = torch.arange(1.0, 4 * 4 * 7 + 1).reshape(4, 4, 7)
    layer = small_layer(vectors=rows, grouping=class_grouping(4, CLASSES, 4))
    torch.testing.assert_close(layer.vectors, nn.functional.normalize(rows, dim=2))


def test_compile_of_the_local_loss() -> None:
    layer, (x, target) = small_layer(), small_batch()
    twin = copy.deepcopy(layer)
    loss, y = torch.compile(layer.local_loss, fullgraph=True)(x, target)
    loss.backward()
    expected, output = twin.local_loss(x, target)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(y, output)
    for name, parameter in twin.named_parameters():
        if name != "bias":  # zero but for rounding, in front of a batch norm
            torch.testing.assert_close(layer.get_parameter(name).grad, parameter.grad)
