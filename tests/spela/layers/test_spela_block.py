"""SpelaBlock against autograd of the loss written out, and as a module among others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spela_kernels as sk
from spela import SpelaBlock, SpelaSequential, convert
from spela.optim import LocalAdam, LocalSGD
from spela_kernels.objectives import OBJECTIVES
from tests.spela.layers.small_blocks import BODIES, CLASSES, small_block


def _normed(z: Tensor, norm: nn.Module) -> Tensor:
    """Batch norm, which moves its statistics, and LeakyReLU."""
    z = nn.functional.batch_norm(
        z, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True
    )
    norm.num_batches_tracked += 1
    return nn.functional.leaky_relu(z, 0.01)


def _expected(block: SpelaBlock, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The loss as the spec writes it, in operators that autograd knows."""
    y = block.body(x)
    rows = y
    if block.head.convolution is not None:
        small = nn.functional.adaptive_avg_pool2d(y, (min(8, y.shape[2]), min(8, y.shape[3])))
        z = nn.functional.conv2d(small, block.head.convolution.weight, padding=1)
        maps = _normed(z, block.head.convolution.norm)
        rows = nn.functional.adaptive_avg_pool2d(maps, (2, 2)).flatten(1)
    elif y.dim() == 4:
        rows = nn.functional.adaptive_avg_pool2d(y, (2, 2)).flatten(1)
    elif y.dim() == 3:
        rows = y.mean(dim=1)
    if block.head.hidden is not None:
        rows = _normed(rows @ block.head.hidden.weight.T, block.head.hidden.norm)
    if block.projection is not None:
        rows = rows @ block.projection[0]
    cosines = nn.functional.normalize(rows, dim=1) @ block.vectors.T
    row = OBJECTIVES[block.objective]
    compared = cosines if row.all_classes else cosines.gather(1, target[:, None])[:, 0]
    loss = row.loss(compared, target, block.scale).mean()
    if block.similarity is not None:
        weight = block.similarity.weight
        if y.dim() == 4:
            seen = nn.functional.conv2d(y, weight, padding=1).flatten(2).std(2, correction=0)
        elif y.dim() == 3:
            seen = (y @ weight.T).std(1, correction=0)
        else:
            seen = y @ weight.T
        seen = nn.functional.normalize(seen - seen.mean(1, keepdim=True), dim=1)
        labels = block.vectors[target]
        gram = (seen @ seen.T - labels @ labels.T).square().mean()
        loss = (1 - block.similarity_weight) * loss + block.similarity_weight * gram
    return loss, y


SETTINGS = [
    {"objective": "softmax"},
    {"objective": "log"},
    {"objective": "mse", "projection": None},
    {"objective": "softmax", "projection": None, "scale": 3.0},
    {"similarity": 0.99},
    {"hidden": 5},
    {"channels": 4, "hidden": 5},
    {"channels": 4, "projection": None, "objective": "log"},
    {"hidden": 5, "projection": None, "objective": "mse"},
    {"similarity": 0.5, "projection": None, "objective": "cosine"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", BODIES)
def test_loss_and_gradients_are_those_of_autograd(kind: str, settings: dict[str, Any]) -> None:
    block, x, target = small_block(kind, **settings)
    other = copy.deepcopy(block)
    expected, y = _expected(other, x, target)
    loss, out = block.local_loss(x.clone().requires_grad_(), target)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out, y.detach(), rtol=0, atol=0)
    assert not out.requires_grad
    if not loss.requires_grad:  # nothing in it learns
        assert not list(block.parameters())
        return
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(block.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("backend", sk.available_backends("cpu"))
@pytest.mark.parametrize("rule", [LocalSGD, LocalAdam])
@pytest.mark.parametrize(
    ("kind", "settings_of_head"),
    [
        *((kind, {}) for kind in BODIES),
        ("maps", {"hidden": 5}),
        ("maps", {"channels": 4, "hidden": 5}),
        ("maps", {"similarity": 0.5}),
        ("rows", {"projection": None}),
    ],
)
def test_a_fused_step_is_torchs_step_on_the_loss(
    kind: str, settings_of_head: dict[str, Any], rule: Any, backend: str
) -> None:
    block, x, target = small_block(kind, **settings_of_head)
    other = copy.deepcopy(block)
    settings = {"lr": 0.01, "weight_decay": 0.1}
    plain = {LocalSGD: torch.optim.SGD, LocalAdam: torch.optim.Adam}[rule]
    ours, theirs = rule(block.parameters(), **settings), plain(other.parameters(), **settings)
    with sk.use_backend(backend):
        for _ in range(3):
            loss, out = block.local_step(x, target, ours)
            theirs.zero_grad()
            expected, y = _expected(other, x, target)
            expected.backward()
            theirs.step()
            torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(out, y.detach(), rtol=1e-9, atol=1e-9)
    for (name, a), b in zip(block.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=name)
    assert all(p.grad is None for p in block.parameters())


def test_a_state_comes_back_and_a_missing_one_is_told() -> None:
    block, x, target = small_block("maps", similarity=0.5)
    block.local_step(x, target, LocalSGD(block.parameters(), lr=0.1))
    other = small_block("maps", similarity=0.5)[0]
    other.load_state_dict(block.state_dict())
    block.eval()
    other.eval()
    assert torch.equal(block.scores(block(x)), other.scores(other(x)))
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})


def test_from_the_meta_device_a_block_starts_as_any_other() -> None:
    make, shape = BODIES["maps"]
    with torch.device("meta"):
        block = SpelaBlock(make(), CLASSES, torch.empty(2, *shape), similarity=0.5, hidden=5)
    block.to_empty(device="cpu")
    torch.manual_seed(3)
    block.reset_parameters()
    torch.manual_seed(3)
    body = make()
    body[0].reset_parameters()
    torch.manual_seed(3)
    other = SpelaBlock(make(), CLASSES, torch.zeros(2, *shape), similarity=0.5, hidden=5)
    for name, value in other.state_dict().items():
        assert torch.equal(value, block.state_dict()[name]), name


def test_hooks_and_frozen_parts() -> None:
    block, x, target = small_block("maps", dtype=torch.float32)
    seen = []
    block.register_forward_hook(lambda module, args, y: seen.append(y) or -y)
    first = block.body[0].weight.requires_grad_(False).clone()
    norm = block.body[1].weight.clone()
    _, y = block.local_step(x, target, LocalSGD(block.parameters(), lr=0.5))
    assert torch.equal(y, -seen[0])
    assert torch.equal(block.body[0].weight, first)
    assert not torch.equal(block.body[1].weight, norm)


def test_a_network_of_blocks_learns_and_answers_early() -> None:
    torch.manual_seed(0)
    x, target = torch.randn(60, 3, 8, 8), torch.arange(60) % CLASSES
    x[torch.arange(60), target % 3, target, target] += 4.0
    first = SpelaBlock(BODIES["maps"][0](), CLASSES, x)
    second = SpelaBlock(nn.Sequential(nn.Conv2d(6, 8, 3), nn.GELU()), CLASSES, first(x).detach())
    net = SpelaSequential(first, second)
    optimizer = LocalAdam(net.parameters(), lr=0.01)
    for _ in range(60):
        losses = net.local_step(x, target, optimizer)
    assert losses.shape == (2,)
    net.eval()
    assert (net.predict(x) == target).float().mean() > 0.95
    assert [s.shape for s in net.layer_scores(x)] == [(60, CLASSES)] * 2
    assert set(net.predict_detailed(x, 0.2).layer.tolist()) <= {0, 1}


def test_a_network_in_eval_mode_is_converted_in_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    settings = {"blocks": 2, "hidden": 4, "dropout": 0.5, "similarity": 0.1}
    for training in (False, True):
        net = convert(model.train(training), 3, torch.randn(4, 6), **settings)
        assert {module.training for module in net.local_layers for module in module.modules()} == {
            training
        }


def test_a_lazy_body_is_made_by_the_sample() -> None:
    body = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    block = SpelaBlock(body, 3, torch.randn(2, 1, 6, 6))
    assert block.output_shape == (4, 4, 4)
    assert (body[1].running_mean == 0).all()
    loss, _ = block.local_step(
        torch.randn(5, 1, 6, 6), torch.arange(5) % 3, LocalSGD(block.parameters(), lr=0.1)
    )
    assert loss.isfinite()
