"""SpelaBlock against autograd of the loss written out, and what it refuses before anything moves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spela_kernels as sk
from spela import SpelaBlock, SpelaSequential, convert
from spela.layers.similarity import Similarity
from spela.optim import LocalAdam, LocalSGD
from spela_kernels.objectives import OBJECTIVES

CLASSES = 5


class _Tokens(nn.Module):
    """Images to tokens through one attention layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        # Without biases: that of the keys has no gradient but rounding, which Adam makes steps of.
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.patch(x).flatten(2).mT)


class _Twice(nn.Module):
    """One parameter, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.linear(x).tanh())


BODIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "maps": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.LeakyReLU()),
        (3, 10, 9),
    ),
    "tokens": (_Tokens, (3, 8, 8)),
    "rows": (lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh()), (6,)),
    "one parameter twice": (_Twice, (6,)),
    "no parameters": (nn.Tanh, (6,)),
}


def _block(
    kind: str, *, dtype: torch.dtype = torch.float64, **settings: Any
) -> tuple[SpelaBlock, Tensor, Tensor]:
    torch.manual_seed(0)
    make, shape = BODIES[kind]
    x = torch.randn(12, *shape, dtype=dtype)
    block = SpelaBlock(
        make().to(dtype), CLASSES, x[:2], readout=24, **{"projection": 7, **settings}
    )
    return block, x, torch.arange(12) % CLASSES


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
    block, x, target = _block(kind, **settings)
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
    block, x, target = _block(kind, **settings_of_head)
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


def test_checkpointing_gives_the_same_numbers_and_moves_statistics_once() -> None:
    states = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        x, target = torch.randn(12, 3, 8, 8), torch.arange(12) % CLASSES
        more = (nn.Dropout(0.3), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6, momentum=None))
        block = SpelaBlock(
            nn.Sequential(*BODIES["maps"][0](), *more), CLASSES, x, checkpoint=checkpoint
        )
        optimizer = LocalAdam(block.parameters(), lr=0.01)
        for _ in range(3):
            block.local_step(x, target, optimizer)
        states.append(block.state_dict())
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=0, msg=name)
    assert states[1]["body.1.num_batches_tracked"] == 3


def test_checkpointing_stores_less() -> None:
    held = []
    for checkpoint in (False, True):
        layers = [m for _ in range(6) for m in (nn.Linear(64, 64), nn.Tanh(), nn.Tanh())]
        x = torch.randn(32, 64)
        block = SpelaBlock(
            nn.Sequential(nn.Sequential(*layers[:9]), nn.Sequential(*layers[9:])),
            5,
            x,
            checkpoint=checkpoint,
        )
        stored: dict[int, int] = {}

        def note(t: Tensor, stored: dict[int, int] = stored) -> Tensor:
            stored[t.untyped_storage().data_ptr()] = t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            loss, _ = block.local_loss(x, torch.arange(32) % CLASSES)
        own = sum(p.numel() for p in block.parameters())
        held.append(sum(stored.values()) - own)
        loss.backward()
    assert held[1] < held[0] / 2


def test_dropout_and_readout_are_the_heads_alone() -> None:
    block, x, target = _block("maps", dropout=0.5)
    losses = {block.local_loss(x, target)[0].item() for _ in range(4)}
    assert len(losses) == 4
    block.eval()
    assert len({block.local_loss(x, target)[0].item() for _ in range(4)}) == 1
    torch.testing.assert_close(block(x), block.body(x), rtol=0, atol=0)
    assert [tuple(p.shape) for p in block.head_parameters()] == [(1, 24, 7)]


def test_scores_are_cosines_and_images_of_another_size_are_read_out_alike() -> None:
    block, x, _ = _block("maps")
    block.eval()
    rows = nn.functional.adaptive_avg_pool2d(block(x), (2, 2)).flatten(1) @ block.projection[0]
    expected = nn.functional.normalize(rows, dim=1) @ block.vectors.T
    torch.testing.assert_close(block.scores(block(x)), expected, rtol=1e-12, atol=1e-12)
    larger = torch.randn(3, 3, 15, 11, dtype=torch.float64)
    assert block.scores(block(larger)).shape == (3, CLASSES)
    assert block.scores(block(x[:0])).shape == (0, CLASSES)


def test_a_state_comes_back_and_a_missing_one_is_told() -> None:
    block, x, target = _block("maps", similarity=0.5)
    block.local_step(x, target, LocalSGD(block.parameters(), lr=0.1))
    other = _block("maps", similarity=0.5)[0]
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


def test_a_hidden_layer_answers_for_each_sample_alone() -> None:
    block, x, target = _block("rows", hidden=5)
    optimizer = LocalAdam(block.parameters(), lr=0.01)
    block.local_step(x, target, optimizer)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    together = block.scores(block(x))
    torch.testing.assert_close(together[3:4], block.scores(block(x[3:4])))
    for name, value in block.state_dict().items():
        assert torch.equal(value, before[name]), name
    # One sample alone learns, by the running statistics: its step is that of evaluation.
    other = copy.deepcopy(block).eval()
    ours, theirs = (
        b.local_step(x[:1], target[:1], LocalSGD(b.parameters(), 0.1)) for b in (block, other)
    )
    torch.testing.assert_close(ours, theirs)
    for name, value in block.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], msg=name)
        if "norm.running" in name or "num_batches" in name:
            assert torch.equal(value, before[name]), name
    assert {id(p) for p in block.head_parameters()} == {
        id(p) for p in (block.projection, *block.head.hidden.parameters())
    }


def test_a_heads_convolution_answers_for_each_sample_alone_and_is_of_maps_only() -> None:
    block, x, target = _block("maps", channels=4)
    block.local_step(x, target, LocalAdam(block.parameters(), lr=0.01))
    y = block.body.eval()(x)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    together = block.scores(y)
    torch.testing.assert_close(together[3:4], block.scores(y[3:4]))
    torch.testing.assert_close(together, block.eval().scores(y))
    for name, value in block.state_dict().items():
        assert torch.equal(value, before[name]), name
    for kind in ("tokens", "rows"):
        assert _block(kind, channels=4)[0].head.convolution is None


@pytest.mark.parametrize("hidden", [0, 5])
def test_mixed_precision_learns_and_keeps_float32(hidden: int) -> None:
    block, x, target = _block("maps", dtype=torch.float32, hidden=hidden, channels=hidden)
    optimizer = LocalAdam(block.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, y = block.local_step(x, target, optimizer)
        losses.append(float(loss))
    assert y.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in block.parameters())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_step_learns_with_gradients_off_in_the_same_bits(mode: Any) -> None:
    states = []
    for outside in (torch.enable_grad, mode):
        block, x, target = _block("maps", dtype=torch.float32)
        optimizer = LocalAdam(block.parameters(), lr=0.01)
        with outside():
            for _ in range(3):
                block.local_step(x.clone(), target, optimizer)
        states.append(block.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_hooks_and_frozen_parts() -> None:
    block, x, target = _block("maps", dtype=torch.float32)
    seen = []
    block.register_forward_hook(lambda module, args, y: seen.append(y) or -y)
    first = block.body[0].weight.requires_grad_(False).clone()
    norm = block.body[1].weight.clone()
    _, y = block.local_step(x, target, LocalSGD(block.parameters(), lr=0.5))
    assert torch.equal(y, -seen[0])
    assert torch.equal(block.body[0].weight, first)
    assert not torch.equal(block.body[1].weight, norm)


class _Returns(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


@pytest.mark.parametrize(
    ("body", "settings", "message"),
    [
        (_Returns(lambda x: (x, x)), {}, "must return one float tensor, got tuple"),
        (_Returns(lambda x: x.argmax(1)), {}, "must return one float tensor, got torch.int64"),
        (_Returns(lambda x: x[:, 0, 0, 0]), {}, r"must return maps"),
        (_Returns(lambda x: x.flatten(1)[:1]), {}, "must keep the batch axis"),
        (nn.ReLU(inplace=True), {}, "changes its input in place"),
        (nn.Identity(), {"readout": 0}, "`readout` must be at least 1"),
        (nn.Identity(), {"projection": 1}, "`projection` must be at least 2"),
        (
            _Returns(lambda x: x.flatten(1)[:, :1]),
            {"projection": None, "hidden": 0},
            "in one dimension no direction can turn",
        ),
        (nn.Identity(), {"dropout": 1.0}, r"`dropout` must be in \[0, 1\)"),
        (nn.Identity(), {"similarity": 1.0}, r"`similarity` must be in \[0, 1\)"),
        (nn.Identity(), {"objective": "none"}, "unknown objective 'none'"),
        (nn.Identity(), {"vectors": torch.ones(5, 3)}, r"\(5, 128\)"),
        (torch.relu, {}, "`body` must be an nn.Module, got builtin"),
    ],
)
def test_what_no_block_can_be_made_of(body: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        SpelaBlock(body, CLASSES, torch.randn(4, 3, 8, 8), **settings)


def test_a_refused_step_changes_nothing() -> None:
    block, x, target = _block("maps", similarity=0.5, dtype=torch.float32)
    plain, *_ = _block("maps", dtype=torch.float32)
    for changed, batch, labels, message in (
        (block, x[:1], target[:1], "batches of at least 2"),
        (plain, x, target + 1, r"must hold labels 0\.\.4"),
        (plain, x, target[:3], "one label per sample"),
        (plain, x[:0], target[:0], "there are no rows"),
        (plain, x[:, :2], target, "channels"),
    ):
        before = copy.deepcopy(changed.state_dict())
        with pytest.raises((ValueError, RuntimeError), match=message):
            changed.local_step(batch, labels, LocalAdam(changed.parameters(), lr=0.1))
        for name, value in changed.state_dict().items():
            assert torch.equal(value, before[name]), (message, name)


def test_blocks_that_share_a_parameter_are_refused_before_anything_moves() -> None:
    shared = nn.Linear(6, 6)
    x, target = torch.randn(4, 6), torch.arange(4)
    net = SpelaSequential(*(SpelaBlock(shared, CLASSES, x) for _ in range(2)))
    before = shared.weight.clone()
    for learn in (
        lambda: net.local_step(x, target, LocalSGD(net.parameters(), lr=0.1)),
        lambda: net.local_losses(x, target),
    ):
        with pytest.raises(ValueError, match=r"two layers share a parameter of shape \(6, 6\)"):
            learn()
    assert torch.equal(shared.weight, before)


def test_one_sample_is_refused_before_a_statistic_moves() -> None:
    norm, x = nn.BatchNorm1d(6), torch.randn(4, 6)
    later = SpelaBlock(nn.Linear(6, 6), CLASSES, x, similarity=0.5)
    net = SpelaSequential(
        SpelaBlock(
            nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, (6, 1)), norm), CLASSES, x, hidden=4
        )
    )
    net.append(nn.Flatten()).append(later)
    with pytest.raises(ValueError, match="similarity loss of module 2 compares samples"):
        net.local_losses(x[:1], torch.tensor([0]))
    assert int(norm.num_batches_tracked) == 0


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


def test_losses_are_there_in_inference_mode() -> None:
    block, x, target = _block("maps", dtype=torch.float32)
    expected = block.eval().local_loss(x, target)[0]
    with torch.inference_mode():
        assert torch.equal(block.local_loss(x.clone(), target)[0], expected.detach())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.Hardswish])
def test_checkpointing_bears_activations_in_place(activation: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    x, target = torch.randn(6, 3, 8, 8).double(), torch.arange(6) % CLASSES
    last = nn.Sequential(activation(inplace=True), nn.Conv2d(8, 4, 3))
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), activation(inplace=True),
                         nn.Conv2d(8, 8, 3), last).double()  # fmt: skip
    block = SpelaBlock(body, CLASSES, x)
    other = copy.deepcopy(block)
    other.checkpoint = True
    for each in (block, other):
        each.local_step(x, target, LocalSGD(each.parameters(), lr=0.1))
    for mine, theirs in zip(other.parameters(), block.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("body", [
    nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Linear(6, 8)),
    nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.Sequential(nn.Dropout(inplace=True)), nn.Linear(6, 8)
    ),
])  # fmt: skip
def test_dropout_in_place_of_the_input_is_refused_when_the_block_is_made(body: nn.Module) -> None:
    x = torch.randn(4, 6)
    keep = x.clone()
    with pytest.raises(ValueError, match="changes its input in place"):
        SpelaBlock(body, 3, x)
    assert torch.equal(x, keep)
    assert not any(module._forward_pre_hooks for module in body.modules())
    net = convert(nn.Sequential(*body, nn.ReLU(), nn.Linear(8, 3)), 3, x, blocks=2).train()
    net(x)
    assert torch.equal(x, keep)
    assert any(getattr(module, "inplace", False) for module in body.modules())  # the caller's stays


class _Widening(nn.Module):
    """Gives its output in another dtype than its weights have, as many networks do with their logits."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.a, self.dtype = nn.Linear(6, 8), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).to(self.dtype)


@pytest.mark.parametrize("settings", [{}, {"hidden": 4}, {"projection": None}, {"similarity": 0.5}])
@pytest.mark.parametrize(
    ("own", "out"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
    ],
)
def test_an_output_in_another_dtype_is_learnt_from(
    own: torch.dtype, out: torch.dtype, settings: dict[str, Any]
) -> None:
    x, target = torch.randn(6, 6).to(own), torch.arange(6) % 3
    block = SpelaBlock(_Widening(out).to(own), 3, x, **settings)
    before = {name: value.clone() for name, value in block.named_parameters()}
    loss, y = block.local_step(x, target, LocalSGD(block.parameters(), lr=1.0))
    assert y.dtype == out
    assert loss.isfinite()
    for name, value in block.named_parameters():
        assert value.dtype == own
        assert not torch.equal(value, before[name]), name


def test_a_network_in_eval_mode_is_converted_in_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    settings = {"blocks": 2, "hidden": 4, "dropout": 0.5, "similarity": 0.1}
    for training in (False, True):
        net = convert(model.train(training), 3, torch.randn(4, 6), **settings)
        assert {module.training for module in net.local_layers for module in module.modules()} == {
            training
        }


def test_a_similarity_loss_of_its_own_starts_from_its_generator() -> None:
    first, second = (
        Similarity((4, 8, 8), generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert torch.equal(first.weight, second.weight)
    assert 0.1 < first.weight.abs().max() <= 1 / 6
    y = torch.zeros(4, 4, 8, 8, requires_grad=True)  # dead maps: no direction, and no NaN
    first(y, torch.eye(4)).backward()
    assert torch.equal(y.grad, torch.zeros_like(y))


def test_one_sample_is_scored_by_its_own_statistics_too() -> None:
    block, x, _ = _block("rows", hidden=5)
    norm = block.head.hidden.norm
    norm.running_mean = norm.running_var = None
    nn.init.normal_(norm.bias)  # all that one sample's own statistics leave
    rows = nn.functional.leaky_relu(norm.bias, 0.01)[None] @ block.projection[0]
    expected = nn.functional.normalize(rows, dim=1) @ block.vectors.T
    torch.testing.assert_close(block.eval().scores(block(x[:1])), expected.detach())


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6)])
def test_the_similarity_of_one_position_is_of_its_values(shape: tuple[int, ...]) -> None:
    y = torch.randn(5, *shape, requires_grad=True)
    vectors = torch.eye(3)[torch.tensor([0, 1, 2, 0, 1])]
    Similarity(shape)(y, vectors).backward()
    assert y.grad.abs().max() > 1e-4


def test_a_checkpointed_spectral_norm_has_the_plain_gradient() -> None:
    x, target = torch.randn(6, 5), torch.arange(6) % 3
    body = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 4))
    blocks = [SpelaBlock(copy.deepcopy(body), 3, x, checkpoint=on) for on in (False, True)]
    blocks[1].load_state_dict(blocks[0].state_dict())
    for block in blocks:
        loss, _ = block.local_loss(x, target)
        loss.backward()
    states = [block.state_dict() for block in blocks]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for now, then in zip(blocks[1].parameters(), blocks[0].parameters(), strict=True):
        assert torch.equal(now.grad, then.grad)


class _TimeFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1)


@pytest.mark.parametrize("tokens", [3, 4, 8])
def test_a_body_that_moves_the_batch_axis_is_refused(tokens: int) -> None:
    """Also where the other axis is as long as the sample, or twice as long."""
    with pytest.raises(ValueError, match="must keep the batch axis first"):
        SpelaBlock(nn.Sequential(nn.Linear(5, 6), _TimeFirst()), 3, torch.randn(4, tokens, 5))


def test_a_body_that_folds_rows_in_training_is_refused_before_it_learns() -> None:
    class Folds(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y.reshape(-1, 12) if self.training else y

    block = SpelaBlock(Folds(4, 6), 3, torch.randn(2, 4))
    before = block.body.weight.detach().clone()
    optimizer = LocalSGD(block.parameters(), lr=1.0)
    with pytest.raises(ValueError, match="makes 3 rows of 6 samples"):
        block.local_step(torch.randn(6, 4), torch.tensor([0, 1, 2] * 2), optimizer)
    assert torch.equal(before, block.body.weight)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_pixels_as_whole_numbers_are_refused_with_what_to_do(checkpoint: bool) -> None:
    block, x, target = _block("maps", checkpoint=checkpoint)
    before = copy.deepcopy(block.state_dict())
    pixels = torch.zeros(x.shape, dtype=torch.uint8)
    optimizer = LocalAdam(block.parameters())
    for run in (block, lambda x: block.local_step(x, target, optimizer)):
        with pytest.raises(TypeError, match=r"torch\.uint8: convert pixels by x\.float\(\) / 255"):
            run(pixels)
        for other in (torch.float32, torch.int64):
            expected = rf"`x` of {other}: its weights are {x.dtype}, convert one"
            with pytest.raises(TypeError, match=expected):
                run(x.to(other))
    torch.testing.assert_close(block.state_dict(), before, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="channels"):  # of another fault, what the body says
        block(x[:, :2])
    embedding = SpelaBlock(nn.Embedding(7, 6), CLASSES, torch.zeros(2, 4, dtype=torch.int64))
    assert embedding(torch.ones(2, 4, dtype=torch.int64)).shape == (2, 4, 6)
    words = nn.Sequential(nn.Embedding(7, 6), nn.Flatten(), nn.Linear(24, 5))
    numbered = SpelaBlock(words, CLASSES, torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(
        RuntimeError, match="shapes cannot be multiplied"
    ):  # whole numbers are its own
        numbered(torch.ones(2, 3, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_a_block_in_16_bits_takes_torch_s_step(kind: str) -> None:
    block, x, target = _block("maps", dtype=torch.bfloat16)
    twin, before = copy.deepcopy(block), block.projection.clone()
    ours = {"Adam": LocalAdam, "SGD": LocalSGD}[kind](block.parameters(), lr=1e-2)
    theirs = getattr(torch.optim, kind)(twin.parameters(), lr=1e-2, fused=kind == "Adam")
    block.local_step(x, target, ours)
    twin.local_step(x, target, theirs)
    assert not torch.equal(block.projection, before)
    for name, value in block.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


def test_a_lazy_body_is_made_by_the_sample() -> None:
    body = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    block = SpelaBlock(body, 3, torch.randn(2, 1, 6, 6))
    assert block.output_shape == (4, 4, 4)
    assert (body[1].running_mean == 0).all()
    loss, _ = block.local_step(
        torch.randn(5, 1, 6, 6), torch.arange(5) % 3, LocalSGD(block.parameters(), lr=0.1)
    )
    assert loss.isfinite()
