"""Where a local step learns, what it moves, what it leaves alone, and which hooks it calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.optimizer import register_optimizer_step_post_hook

from spela import RowNorm, SpelaBlock, SpelaConv2d, SpelaLinear, SpelaSequential, baselines, optim
from spela.layers import with_binary_weight
from spela.streaming import StreamingClassifier
from tests.spela.torch_settings import gradients_off

G = torch.Generator().manual_seed(1)
ROWS, IMAGES = torch.randn(12, 6, generator=G), torch.randn(12, 1, 8, 8, generator=G)
TARGET = torch.arange(12) % 3


def _linear(freeze: tuple[str, ...] = (), binary: bool = False) -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    layers = [
        SpelaLinear(6, 16, 3, activation="prelu", generator=g),
        SpelaLinear(16, 9, 3, generator=g),
    ]
    if binary:
        layers = [with_binary_weight(layer) for layer in layers]
    net = SpelaSequential(layers[0], RowNorm(), nn.ReLU(inplace=True), layers[1])
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in freeze)
    return net


def _conv(batch_norm: bool = True) -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    settings = {"symmetric_dim": 8, "batch_norm": batch_norm, "generator": g}
    return SpelaSequential(
        nn.ReLU(inplace=True),
        SpelaConv2d(1, 4, 3, 3, (3, 3), **settings),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        SpelaLinear(36, 8, 3, generator=g),
    )


def _mono() -> nn.Module:
    g = torch.Generator().manual_seed(0)
    return baselines.MonoForwardSequential(
        baselines.MonoForwardLayer(6, 8, 3, generator=g),
        baselines.MonoForwardLayer(8, 8, 3, generator=g),
    )


def _forward_forward() -> nn.Module:
    g = torch.Generator().manual_seed(0)
    layers = [
        baselines.ForwardForwardLayer(6, 8, generator=g),
        baselines.ForwardForwardLayer(8, 8, generator=g),
    ]
    return baselines.ForwardForwardSequential(layers[0], RowNorm(), layers[1], num_classes=3)


def _backprop_layers() -> list[nn.Module]:
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)]
    g = torch.Generator().manual_seed(0)
    for parameter in nn.Sequential(*layers).parameters():
        parameter.data.normal_(generator=g)
    return layers


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (_linear, ROWS),
    "part frozen": (lambda: _linear(freeze=("0.bias", "3.weight")), ROWS),
    "binary": (lambda: _linear(binary=True), ROWS),
    "convolution": (_conv, IMAGES),
    "convolution without batch norm": (lambda: _conv(batch_norm=False), IMAGES),
    "mono-forward": (_mono, ROWS),
    "forward-forward": (_forward_forward, ROWS),
    "pepita": (
        lambda: baselines.PepitaSequential(
            *_backprop_layers(), generator=torch.Generator().manual_seed(0)
        ),
        ROWS,
    ),
    "backprop": (lambda: baselines.BackpropSequential(*_backprop_layers()), ROWS),
}
Make = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "LocalSGD": lambda p: optim.LocalSGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "LocalAdam": lambda p: optim.LocalAdam(p, 0.05, weight_decay=0.01),
    "LocalAdam, a group a parameter": lambda p: optim.LocalAdam([{"params": [q]} for q in p], 0.05),
    "SGD": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, 0.05),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, 0.05, foreach=True),
}


@contextmanager
def _gradients_on_in_inference_mode() -> Iterator[None]:
    with torch.inference_mode(), torch.enable_grad():
        yield


MODES = {
    "inference mode": torch.inference_mode,
    "gradients on in inference mode": _gradients_on_in_inference_mode,
    "no_grad": torch.no_grad,
    "gradients off": gradients_off,
}


def _seeded_step(net: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    torch.manual_seed(0)  # Forward-Forward draws wrong labels
    return net.local_step(x, TARGET.clone(), optimizer)  # type: ignore[operator]


def _state(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [*net.state_dict().values(), *(v for v in values if isinstance(v, Tensor))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", NETS)
def test_a_step_learns_the_same_bits_in_every_mode_and_goes_on_outside(
    kind: str, name: str, mode: str
) -> None:
    build, x = NETS[kind]
    nets = [build(), build()]
    optimizers = [OPTIMIZERS[name](net.parameters()) for net in nets]
    before = copy.deepcopy(nets[0].state_dict())
    with MODES[mode]():
        inside = [_seeded_step(nets[0], x.clone(), optimizers[0]) for _ in range(2)]
        inside.append(_seeded_step(nets[0], x, optimizers[0]))  # made outside
    inside.append(_seeded_step(nets[0], x, optimizers[0]))
    outside = [_seeded_step(nets[1], x.clone(), optimizers[1]) for _ in range(4)]
    assert torch.equal(torch.stack(inside), torch.stack(outside))
    for now, then in zip(*map(_state, nets, optimizers), strict=True):
        assert torch.equal(now, then)
        assert not now.is_inference()
    moved = {k for k, v in nets[0].state_dict().items() if not torch.equal(v, before[k])}
    trained = {k for k, p in nets[0].named_parameters() if p.requires_grad}
    # A batch norm in between is not trained; nor has a bias before a batch norm a gradient.
    idle = {"2.weight", "2.bias", "1.bias"} if "convolution" in kind else set()
    assert trained - idle <= moved
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["linear", "binary", "convolution", "backprop"])
def test_features_made_in_inference_mode_train_outside(kind: str, name: str) -> None:
    build, x = NETS[kind]
    nets = [build(), build()]
    with torch.inference_mode():
        features, target = x.clone(), TARGET.clone()
    losses = []
    for net, rows in zip(nets, (features, x.clone()), strict=True):
        optimizer = OPTIMIZERS[name](net.parameters())
        losses.append([net.local_step(rows, target, optimizer) for _ in range(2)])
    assert torch.equal(torch.stack(losses[0]), torch.stack(losses[1]))
    for now, then in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_local_losses_of_features_made_in_inference_mode(kind: str) -> None:
    build, x = NETS[kind]
    nets = [build(), build()]
    with torch.inference_mode():
        features, target = x.clone(), TARGET.clone()
    nets[0].local_losses(features, target).sum().backward()  # type: ignore[operator]
    nets[1].local_losses(x.clone(), TARGET).sum().backward()  # type: ignore[operator]
    for now, then in zip(*(net.parameters() for net in nets), strict=True):
        if then.grad is None:  # a batch norm in between
            assert now.grad is None
        else:
            assert torch.equal(now.grad, then.grad)


@pytest.mark.parametrize("build", [_linear, _conv])
def test_a_network_built_in_inference_mode_learns(build: Callable[[], SpelaSequential]) -> None:
    x = ROWS if build is _linear else IMAGES
    with torch.inference_mode():
        made = build()
    nets = [build(), SpelaSequential(*made.local_layers)]
    if build is _conv:
        nets = [SpelaSequential(net.local_layers[0]) for net in nets]
    else:
        nets = [SpelaSequential(*net.local_layers) for net in nets]
    for net in nets:
        optimizer = optim.LocalAdam(net.parameters(), 0.1)
        for _ in range(2):
            net.local_step(x, TARGET, optimizer)
        net.local_losses(x, TARGET).sum().backward()
    for now, then in zip(*(net.state_dict().values() for net in nets), strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("make", [optim.LocalSGD, torch.optim.SGD])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_parameters_made_in_inference_mode_are_refused(kind: str, make: type) -> None:
    build, x = NETS[kind]
    with torch.inference_mode():
        net = copy.deepcopy(build())
    before = [parameter.clone() for parameter in net.parameters()]
    optimizer = make(net.parameters(), lr=0.1)
    layer = next(m for m in net if isinstance(m, SpelaLinear | SpelaConv2d))
    for learner in (net, layer):
        with pytest.raises(ValueError, match=r"made under torch\.inference_mode.*outside of it"):
            learner.local_step(x, TARGET, optimizer)
    for now, then in zip(net.parameters(), before, strict=True):
        assert torch.equal(now, then)


def test_a_stream_learns_in_inference_mode() -> None:
    streams = [StreamingClassifier(SpelaSequential(*_linear().local_layers)) for _ in range(2)]
    for number, stream in enumerate(streams):
        with torch.inference_mode(number == 0):
            for row, label in zip(ROWS.clone(), TARGET.tolist(), strict=True):
                stream.observe(row, label)
        stream.observe(ROWS, TARGET.tolist())
    for now, then in zip(*(s.net.state_dict().values() for s in streams), strict=True):
        assert torch.equal(now, then)
    assert not torch.equal(streams[0].net[0].weight, _linear()[0].weight)


def test_a_gradient_that_reaches_nothing_is_an_error() -> None:
    class Detached(nn.Module):
        def forward(self, latent: Tensor) -> Tensor:
            return latent.detach()

    layer = SpelaLinear(6, 16, 3, bias=False)
    parametrize.register_parametrization(layer, "weight", Detached())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="no gradient reaches the parameters"):
        layer.local_step(ROWS, TARGET, optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", NETS)
def test_what_is_not_the_layers_stays(kind: str, name: str) -> None:
    build, x = NETS[kind]
    net, head = build(), nn.Linear(4, 2)
    optimizer = OPTIMIZERS[name]([*net.parameters(), *head.parameters()])
    first = next(p for p in net.parameters() if p.requires_grad)

    def backward() -> None:
        head(torch.ones(3, 4)).sum().backward()

    backward()
    optimizer.step()  # momentum and weight decay would move the head without a gradient
    optimizer.zero_grad()
    backward()
    first.grad = torch.full_like(first, 7.0)
    kept = copy.deepcopy(head.state_dict())
    gradients = [(p, p.grad, p.grad.clone()) for p in (*head.parameters(), first)]
    start = [p.detach().clone() for p in net.parameters()]
    _seeded_step(net, x, optimizer)
    for key, value in head.state_dict().items():
        assert torch.equal(value, kept[key]), key
    for parameter, gradient, value in gradients:
        assert parameter.grad is gradient
        assert torch.equal(gradient, value)
    assert sum(p.grad is not None for group in optimizer.param_groups for p in group["params"]) == 3
    # The pending gradient of its own had no part in the step.
    other = build()
    for parameter, value in zip(other.parameters(), start, strict=True):
        assert torch.equal(parameter, value)
    _seeded_step(other, x, OPTIMIZERS[name](other.parameters()))
    for now, then in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(now, then)
    optimizer.step()
    assert not torch.equal(head.weight, kept["weight"])


def test_gradients_come_back_where_a_step_fails() -> None:
    net, head = SpelaSequential(SpelaLinear(6, 16, 3)), nn.Linear(4, 2)
    optimizer = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.1)
    head(torch.ones(3, 4)).sum().backward()
    gradient = head.weight.grad

    def fail(*_: object) -> None:
        raise OSError("no space")

    optimizer.register_step_pre_hook(fail)
    with pytest.raises(OSError, match="no space"):
        net.local_step(ROWS, TARGET, optimizer)
    assert head.weight.grad is gradient
    assert net[0].weight.grad is None


class _Sum(nn.Module):
    """A weight beside what is added to it, as low-rank updates are: both get one gradient, one tensor."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        first, second = (torch.randn(8, 6, generator=g, dtype=torch.float64) for _ in range(2))
        self.first, self.second = nn.Parameter(first), nn.Parameter(second.reshape(2, 4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.first + self.second.view(8, 6)).T


@pytest.mark.parametrize("fused", [False, True])
def test_parameters_with_one_gradient_each_get_it_once(fused: bool) -> None:
    x = ROWS.double()
    block = SpelaBlock(_Sum(), 3, x, generator=torch.Generator().manual_seed(0))
    other = copy.deepcopy(block)
    rule = {"lr": 0.1, "momentum": 0.9}
    ours = (
        optim.LocalSGD(block.parameters(), **rule)
        if fused
        else torch.optim.SGD(block.parameters(), **rule, nesterov=True, foreach=True)
    )
    theirs = torch.optim.SGD(other.parameters(), **rule, nesterov=not fused)
    for _ in range(3):
        block.local_step(x, TARGET, ours)
        loss, _ = other.local_loss(x, TARGET)
        theirs.zero_grad()
        loss.backward()
        theirs.step()
    for mine, plain in zip(block.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, plain)


@pytest.mark.parametrize("kind", ["mono-forward", "forward-forward", "pepita", "backprop"])
def test_a_frozen_parameter_of_a_rival_stays(kind: str) -> None:
    build, x = NETS[kind]
    net = build()
    frozen, learning = [m.weight for m in net if hasattr(m, "weight")]
    frozen.requires_grad_(False)
    before = frozen.clone(), learning.clone()
    _seeded_step(net, x, torch.optim.SGD(net.parameters(), lr=0.1))
    assert torch.equal(frozen, before[0])
    assert not torch.equal(learning, before[1])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["linear", "part frozen", "binary", "convolution"])
def test_step_hooks_are_called_once_for_each_layer(kind: str, name: str) -> None:
    build, x = NETS[kind]
    net, quiet = build(), build()
    optimizer, other = (OPTIMIZERS[name](n.parameters()) for n in (net, quiet))
    layers = net.local_layers  # type: ignore[union-attr]
    weights = [next(p for p in layer.parameters() if p.requires_grad) for layer in layers]
    seen: list[tuple[str, tuple[bool, ...]]] = []
    start = [weight.detach().clone() for weight in weights]

    def see(when: str) -> None:
        moved = (not torch.equal(w, s) for w, s in zip(weights, start, strict=True))
        seen.append((when, tuple(moved)))

    def before(hooked: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        assert hooked is optimizer
        assert args == (optimizer,)
        assert kwargs == {}
        see("before")

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(lambda *_: see("after"))
    everyone = register_optimizer_step_post_hook(lambda *_: see("global"))
    try:
        losses = net.local_step(x, TARGET, optimizer)  # type: ignore[operator]
    finally:
        everyone.remove()
    assert seen == [
        ("before", (False, False)),
        ("after", (True, False)),
        ("global", (True, False)),
        ("before", (True, False)),
        ("after", (True, True)),
        ("global", (True, True)),
    ]
    assert torch.equal(losses, quiet.local_step(x, TARGET, other))  # type: ignore[operator]
    for now, then in zip(net.parameters(), quiet.parameters(), strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_frozen_layer_calls_no_step_hooks(kind: str, name: str) -> None:
    build, x = NETS[kind]
    net = build().requires_grad_(False)
    optimizer, calls = OPTIMIZERS[name](net.parameters()), []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    assert net.local_step(x, TARGET, optimizer).isfinite().all()  # type: ignore[operator]
    assert not calls


@pytest.mark.parametrize("build", [_linear, _conv])
@pytest.mark.parametrize("make", [optim.LocalAdam, optim.LocalSGD, torch.optim.Adam])
def test_an_optimizer_without_a_later_layer_changes_nothing(
    make: type, build: Callable[[], SpelaSequential]
) -> None:
    net, x = build(), ROWS if build is _linear else IMAGES
    before = copy.deepcopy(net.state_dict())
    optimizer = make(net.local_layers[0].parameters(), lr=0.1)
    with pytest.raises(ValueError, match="does not hold a parameter of shape"):
        net.local_step(x.clone(), TARGET, optimizer)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not optimizer.state


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: torch.optim.LBFGS(p), ValueError, "LBFGS calls the loss again.*local_losses"),
        (lambda p: torch.optim.SparseAdam(p), ValueError, "SparseAdam takes sparse gradients only"),
        (lambda p: None, TypeError, "`optimizer` must be an optimizer.*got NoneType"),
        (
            lambda p: torch.optim.lr_scheduler.StepLR(torch.optim.SGD(p, 0.1), 1),
            TypeError,
            "got StepLR",
        ),
    ],
    ids=["LBFGS", "SparseAdam", "None", "scheduler"],
)
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_what_cannot_make_a_local_step_is_refused(
    kind: str, make: Make, error: type[Exception], message: str
) -> None:
    build, x = NETS[kind]
    net = build()
    before = copy.deepcopy(net.state_dict())
    optimizer = make(list(net.parameters()))
    layer = next(m for m in net if isinstance(m, SpelaLinear | SpelaConv2d))
    for learner in (net, layer):
        with pytest.raises(error, match=message):
            learner.local_step(x.clone(), TARGET, optimizer)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


def _block() -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8))
    return SpelaSequential(SpelaBlock(body, 3, ROWS, projection=4, generator=g))


@pytest.mark.parametrize("rule", [optim.LocalSGD, optim.LocalAdam, torch.optim.SGD])
@pytest.mark.parametrize(
    ("build", "x"),
    [(_linear, ROWS), (_conv, IMAGES), (_block, ROWS)],
    ids=["linear", "conv", "block"],
)
def test_hooks_of_parameters_change_their_gradients(build, x: Tensor, rule) -> None:
    """As people mask weights: every parameter that learns is watched, by every optimizer."""
    net = build()
    learns = [p for layer in net.local_layers for p in layer.parameters()]
    before = [p.detach().clone() for p in learns]
    called: list[int] = []
    for index, parameter in enumerate(learns):
        parameter.register_hook(lambda g, index=index: called.append(index) or g * 0)
    optimizer = rule(net.parameters(), lr=0.5)
    net.local_step(x, TARGET, optimizer)
    assert sorted(called) == list(range(len(learns)))
    net.local_steps(x, TARGET, optimizer, batch_size=6)
    assert sorted(called) == sorted([*range(len(learns))] * 3)
    for parameter, old in zip(learns, before, strict=True):
        assert torch.equal(parameter, old)


@pytest.mark.parametrize("kind", ["linear", "projection"])
def test_a_refused_batch_is_no_step_of_adams_count(kind: str) -> None:
    x, target = torch.randn(6, 4), torch.arange(6) % 3
    if kind == "linear":
        layer: SpelaLinear | SpelaBlock = SpelaLinear(4, 8, 3)
    else:
        layer = SpelaBlock(nn.Flatten(), 3, x)
    optimizer = optim.LocalAdam(layer.parameters(), lr=0.1)
    layer.local_step(x, target, optimizer)
    with pytest.raises(ValueError, match="label"):
        layer.local_step(x, target + 3, optimizer)
    with pytest.raises(ValueError, match="4"):
        layer.local_step(torch.randn(6, 5), target, optimizer)
    counts = {float(state["step"]) for state in optimizer.state.values()}
    assert counts == {1.0}


@pytest.mark.parametrize("name", ["LocalSGD", "LocalAdam"])
@pytest.mark.parametrize("kind", ["linear", "convolution", "block"])
def test_state_of_another_shape_is_refused_before_anything_moves(kind: str, name: str) -> None:
    build, x = NETS["linear" if kind == "block" else kind]
    net: nn.Module = build()
    if kind == "block":
        net = SpelaSequential(SpelaBlock(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), 3, x))
    layer = net.local_layers[0]
    for parameter in list(layer.parameters()):
        optimizer = OPTIMIZERS[name](net.parameters())
        net.local_step(x, TARGET, optimizer)
        state = optimizer.state[parameter]
        held = next(key for key in ("momentum_buffer", "exp_avg") if key in state)
        state[held], word = torch.zeros(3, 7), held.removesuffix("_buffer")
        before = {key: value.clone() for key, value in net.state_dict().items()}
        counts = [float(s["step"]) for s in optimizer.state.values() if "step" in s]
        with pytest.raises(ValueError, match=rf"`{word}.*` must be .*, got \(3, 7\)"):
            net.local_step(x, TARGET, optimizer)
        for key, value in net.state_dict().items():
            assert torch.equal(value, before[key]), key
        assert counts == [float(s["step"]) for s in optimizer.state.values() if "step" in s]
