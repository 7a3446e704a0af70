"""SpelaLinear as PyTorch users know nn.Linear, and its local learning."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from spela import SpelaLinear, SpelaSequential, optim
from spela_kernels import ACTIVATIONS
from tests.spela.fused_steps import check_layer_steps


def _batch(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=g).to(dtype), torch.tensor([0, 1, 2, 0, 1, 2])


def _layer(**options: object) -> SpelaLinear:
    generator = torch.Generator().manual_seed(1)
    return SpelaLinear(4, 8, 3, generator=generator, **options)  # type: ignore[arg-type]


def test_is_an_nn_linear_with_torch_layout() -> None:
    layer = _layer()
    assert isinstance(layer, nn.Linear)
    assert layer.weight.shape == (8, 4)
    assert set(layer.state_dict()) == {"weight", "bias", "vectors"}
    assert "num_classes=3" in repr(layer)
    plain = nn.Linear(4, 8)
    layer.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(layer.weight, plain.weight)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_is_the_activation_of_the_affine_map(activation: str) -> None:
    layer, (x, _) = _layer(activation=activation), _batch()
    z = nn.functional.linear(x, layer.weight, layer.bias)
    expected = {
        "leaky_relu": lambda: nn.functional.leaky_relu(z, 1e-3),
        "relu": lambda: z.relu(),
        "tanh": lambda: z.tanh(),
        "elu": lambda: nn.functional.elu(z),
        "gelu": lambda: nn.functional.gelu(z),
        "identity": lambda: z,
        "prelu": lambda: nn.functional.prelu(z, layer.slope),
    }[activation]()
    torch.testing.assert_close(layer(x), expected)


def test_initial_weights_and_vectors() -> None:
    layer = SpelaLinear(600, 200, 10, generator=torch.Generator().manual_seed(0))
    bound = 0.1  # sqrt(6 / 600)
    assert layer.weight.abs().max() <= bound * (1 + 1e-6)
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    cosines = layer.vectors @ layer.vectors.T
    off_diagonal = cosines[~torch.eye(10, dtype=torch.bool)]
    torch.testing.assert_close(off_diagonal, torch.full_like(off_diagonal, -1 / 9))
    assert not layer.vectors.requires_grad


def test_a_generator_decides_weights_and_vectors() -> None:
    first, second = _layer(), _layer()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    other = SpelaLinear(4, 8, 3, generator=torch.Generator().manual_seed(2))
    assert not torch.equal(first.weight, other.weight)
    assert not torch.equal(first.vectors, other.vectors)


def test_own_vectors_are_normalised() -> None:
    rows = torch.arange(24.0).reshape(3, 8)
    layer = _layer(vectors=rows)
    torch.testing.assert_close(layer.vectors, nn.functional.normalize(rows, dim=1))


def test_scores_are_cosines() -> None:
    layer, (x, _) = _layer(), _batch()
    y = layer(x)
    expected = nn.functional.cosine_similarity(y[:, None], layer.vectors[None], dim=2)
    torch.testing.assert_close(layer.scores(y), expected)
    assert torch.equal(layer.scores(torch.zeros(1, 8)), torch.zeros(1, 3))


def test_dtype_device_and_deepcopy() -> None:
    layer = _layer().double()
    assert layer.weight.dtype == layer.vectors.dtype == torch.float64
    x, target = _batch(torch.float64)
    clone = copy.deepcopy(layer)
    optimizer = optim.LocalSGD(layer.parameters(), lr=1.0)
    layer.local_step(x, target, optimizer)
    assert not torch.equal(layer.weight, clone.weight)
    meta = copy.deepcopy(layer).to("meta")
    assert meta(torch.empty(2, 4, device="meta", dtype=torch.float64)).shape == (2, 8)
    assert meta.vectors.is_meta


@pytest.mark.parametrize("activation", ["leaky_relu", "prelu"])
@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
def test_local_step_equals_gradient_and_torch_step(kind: str, activation: str) -> None:
    x, target = _batch(torch.float64)
    fused = _layer(activation=activation).double()
    plain = copy.deepcopy(fused)

    def make(layer: nn.Module) -> torch.optim.Optimizer:
        if kind == "adam":
            return optim.LocalAdam(layer.parameters(), lr=0.05)
        momentum = 0.9 if kind == "momentum" else 0.0
        return optim.LocalSGD(layer.parameters(), lr=0.5, momentum=momentum)

    ours, theirs = make(fused), make(plain)
    check_layer_steps((fused, plain), (ours, theirs), x, target, rtol=1e-10)
    # The state is torch's own: an unfused step may follow a fused one.
    layers = ((fused, ours), (plain, theirs))
    for layer, optimizer in layers:
        optimizer.zero_grad()
        layer.local_loss(x, target)[0].backward()
        optimizer.step()
    torch.testing.assert_close(fused.weight, plain.weight, rtol=1e-9, atol=1e-12)


UNFUSED = [
    ("LocalSGD", {"maximize": True}),
    ("LocalSGD", {"momentum": 0.9, "dampening": 0.5}),
    ("LocalAdam", {"maximize": True}),
    ("LocalAdam", {"amsgrad": True}),
    ("LocalAdam", {"weight_decay": 0.5, "decoupled_weight_decay": True}),
]


@pytest.mark.parametrize(("kind", "options"), UNFUSED, ids=str)
def test_options_of_torch_that_no_op_has_are_obeyed(kind: str, options: dict) -> None:
    """In a parameter group or in a state loaded from torch's optimizer, which may set any of its options."""
    x, target = _batch()
    fused, plain = _layer(), _layer()

    def make(layer: nn.Module) -> torch.optim.Optimizer:
        return getattr(optim, kind)([{"params": list(layer.parameters()), **options}], lr=0.1)

    ours, theirs = make(fused), make(plain)
    twin = copy.deepcopy(fused)
    loaded = getattr(optim, kind)(twin.parameters(), lr=0.1)
    loaded.load_state_dict(ours.state_dict())
    for _ in range(3):
        fused.local_step(x, target, ours)
        twin.local_step(x, target, loaded)
        theirs.zero_grad()
        plain.local_loss(x, target)[0].backward()
        theirs.step()
    torch.testing.assert_close(fused.weight, plain.weight)
    torch.testing.assert_close(twin.weight, plain.weight)


def test_a_refused_batch_leaves_no_trace() -> None:
    layer, (x, target) = _layer(), _batch()
    optimizer = optim.LocalAdam(layer.parameters(), lr=0.1)
    layer.local_step(x, target, optimizer)
    weight, step = layer.weight.clone(), optimizer.state[layer.weight]["step"].clone()
    with pytest.raises(ValueError, match=r"labels 0\.\.2, got 3"):
        layer.local_step(x, target + 1, optimizer)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(optimizer.state[layer.weight]["step"], step)


def test_any_torch_optimizer_steps_this_layer_alone() -> None:
    layer, other, (x, target) = _layer(), _layer(), _batch()
    optimizer = torch.optim.RMSprop([*layer.parameters(), *other.parameters()], lr=0.01)
    before = layer.weight.clone(), other.weight.clone()
    loss, y = layer.local_step(x, target, optimizer)
    assert not torch.equal(layer.weight, before[0])
    assert torch.equal(other.weight, before[1])
    assert not y.requires_grad
    assert not loss.requires_grad


def test_frozen_parameters_stay() -> None:
    x, target = _batch()
    layer = _layer().requires_grad_(False)
    before = layer.weight.clone()
    optimizer = optim.LocalSGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    _loss, y = layer.local_step(x, target, optimizer)
    assert torch.equal(layer.weight, before)
    torch.testing.assert_close(y, layer(x))
    half = _layer()
    half.bias.requires_grad_(False)  # type: ignore[union-attr]
    half.local_step(x, target, optim.LocalSGD(half.parameters(), lr=1.0))
    assert torch.equal(half.bias, torch.zeros(8))  # type: ignore[arg-type]
    assert not torch.equal(half.weight, before)


def test_parameters_missing_from_the_optimizer_are_named() -> None:
    layer, (x, target) = _layer(), _batch()
    for kind in (optim.LocalSGD, torch.optim.SGD):
        optimizer = kind(_layer().parameters(), lr=0.1)
        with pytest.raises(ValueError, match="does not hold a parameter"):
            layer.local_step(x, target, optimizer)
        assert layer.weight.grad is None


def test_groups_and_schedulers() -> None:
    first, second, (x, target) = _layer(), _layer(), _batch()
    groups = [{"params": first.parameters(), "lr": 0.0}, {"params": second.parameters()}]
    optimizer = optim.LocalSGD(groups, lr=1.0)
    before = first.weight.clone()
    assert torch.equal(before, second.weight)
    first.local_step(x, target, optimizer)
    second.local_step(x, target, optimizer)
    assert torch.equal(first.weight, before)
    assert not torch.equal(second.weight, before)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.0)
    optimizer.step()
    scheduler.step()
    stopped = second.weight.clone()
    second.local_step(x, target, optimizer)
    assert torch.equal(second.weight, stopped)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "swish"}, "unknown activation"),
        ({"objective": "hinge"}, "unknown objective"),
        ({"vectors": "random"}, "gaussian"),
        ({"vectors": torch.eye(3)}, r"must be \(3, 8\)"),
        (
            {"vectors": torch.eye(3, 8) * torch.tensor([[1.0], [0.0], [1.0]])},
            "must be finite and not zero",
        ),
        ({"vectors": torch.full((3, 8), torch.nan)}, "must be finite and not zero"),
        ({"scale": -1.0}, "`scale` must be > 0"),
        ({"scale": float("nan")}, "`scale` must be > 0"),
        ({"negative_slope": -1.0}, "`negative_slope` must be >= 0 and finite"),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _layer(**options)
    with pytest.raises(ValueError, match="`out_features` must be at least 2"):
        SpelaLinear(4, 1, 3)  # one number has no direction to turn
    with pytest.raises(TypeError, match="floating point tensor, got list"):
        _layer(vectors=[[1.0, 0.0]])


def test_a_step_runs_on_the_meta_device() -> None:
    layer, (x, target) = _layer().to("meta"), _batch()
    optimizer = optim.LocalSGD(layer.parameters(), lr=0.1)
    loss, y = layer.local_step(x.to("meta"), target.to("meta"), optimizer)
    assert (loss.shape, y.shape) == ((), (len(x), 8))
    with pytest.raises(ValueError, match="`x` is on meta but `weight` on cpu"):
        _layer().local_loss(x.to("meta"), target.to("meta"))


def test_prelu_starts_at_the_slope_that_was_asked_for() -> None:
    layer = SpelaLinear(4, 8, 3, activation="prelu", negative_slope=0.1)
    assert layer.slope is not None
    assert layer.slope.tolist() == pytest.approx([0.1])


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.zeros(2, 8, dtype=torch.uint8), TypeError, r"pixels by x\.float\(\) / 255"),
        (torch.zeros(2, 8, dtype=torch.float64), TypeError, "`x` is torch.float64 but `weight`"),
        (torch.zeros(2, 9), ValueError, "`x` has 9 features but `weight` takes 8"),
        (torch.tensor(1.0), ValueError, "`x` has no features"),
        (torch.zeros(2, 8, device="meta"), ValueError, "move both to one device"),
    ],
)
def test_an_answer_refuses_in_the_words_of_a_step(x, error, words) -> None:
    layer = SpelaLinear(8, 16, 3)
    with pytest.raises(error, match=words):
        layer(x)
    for answer in (SpelaSequential(layer).layer_scores, SpelaSequential(layer).mean_scores):
        with pytest.raises(error, match=words):
            answer(x)
        with pytest.raises(TypeError, match="`x` must be a tensor, got ndarray"):
            answer(np.zeros((2, 8)))


@pytest.mark.parametrize("activation", ["leaky_relu", "prelu"])
def test_16_bits_are_answered_as_they_are_learnt(activation: str) -> None:
    layer = SpelaLinear(8, 16, 3, activation=activation)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x.float()), rtol=0.02, atol=0.02)
    assert torch.equal(layer.local_loss(x, torch.tensor([0, 1, 2, 0]))[1], y)
    labels = SpelaSequential(layer).predict(x)
    assert torch.equal(labels, layer.scores(y).argmax(1))
