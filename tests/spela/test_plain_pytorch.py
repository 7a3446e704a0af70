"""SPELA networks under torch's own tools: any optimizer, AMP, clipping, compile, copies, files, hooks."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parametrizations, prune

from spela import RowNorm, SpelaConv2d, SpelaLinear, SpelaSequential, optim

G = torch.Generator().manual_seed(1)
ROWS, IMAGES = torch.randn(24, 12, generator=G), torch.randn(24, 2, 8, 8, generator=G)
TARGET = torch.arange(24) % 4

Make = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.02),
    "Nesterov": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, 1e-2),
    "AMSGrad": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-2),
    "Adamax": lambda p: torch.optim.Adamax(p, 1e-2),
    "NAdam": lambda p: torch.optim.NAdam(p, 1e-2),
    "RAdam": lambda p: torch.optim.RAdam(p, 1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 1e-3),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
    "Adadelta": lambda p: torch.optim.Adadelta(p, 1.0),
    "Adafactor": lambda p: torch.optim.Adafactor(p, 1e-2),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.02),
    "Rprop": lambda p: torch.optim.Rprop(p, 1e-3),
    "LocalSGD": lambda p: optim.LocalSGD(p, 0.02),
    "LocalAdam": lambda p: optim.LocalAdam(p, 1e-2),
}


def _linear(seed: int = 0) -> SpelaSequential:
    g = torch.Generator().manual_seed(seed)
    return SpelaSequential(
        RowNorm("rms"),
        SpelaLinear(12, 16, 4, activation="gelu", objective="softmax", generator=g),
        nn.ReLU(),
        SpelaLinear(16, 8, 4, activation="prelu", generator=g),
    )


def _conv(seed: int = 0) -> SpelaSequential:
    g = torch.Generator().manual_seed(seed)
    return SpelaSequential(
        SpelaConv2d(2, 6, 3, 4, (4, 4), padding=1, symmetric_dim=5, generator=g),
        SpelaConv2d(6, 6, 3, 4, (2, 2), padding=1, symmetric_dim=5, objective="softmax", generator=g),
        nn.Flatten(),
        SpelaLinear(24, 8, 4, generator=g),
    )  # fmt: skip


NETS = {"linear": (_linear, ROWS), "convolution": (_conv, IMAGES)}


def _gradient_step(net: SpelaSequential, x: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    losses = net.local_losses(x, TARGET)
    losses.sum().backward()
    optimizer.step()
    return losses.detach()


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_torch_trains_every_layer(name: str, kind: str) -> None:
    build, x = NETS[kind]
    net = build()
    before = copy.deepcopy(dict(net.named_parameters()))
    optimizer = OPTIMIZERS[name](net.parameters())
    losses = [_gradient_step(net, x, optimizer)[0] for _ in range(12)]
    # The first layer's, whose input stays the same: what a later layer sees moves under it.
    assert losses[-1] < losses[0]
    for key, value in net.named_parameters():
        if value.dim() > 1:  # a bias before a batch norm has no gradient
            assert not torch.equal(value, before[key]), key


@pytest.mark.parametrize("kind", NETS)
def test_lbfgs_calls_the_losses_again(kind: str) -> None:
    build, x = NETS[kind]
    net = build()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net.local_losses(x, TARGET)[
            0
        ]  # one layer: the sum of all is not one function's value
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert net.local_losses(x, TARGET)[0] < first


EQUAL = {
    "sgd": (lambda p: optim.LocalSGD(p, 0.3), lambda p: torch.optim.SGD(p, 0.3)),
    "momentum": (
        lambda p: optim.LocalSGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    "adam": (
        lambda p: optim.LocalAdam(p, 0.01, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.01),
    ),
}


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("name", EQUAL)
def test_local_steps_equal_backward_and_step_to_rounding(name: str, kind: str) -> None:
    build, x = NETS[kind]
    fused, plain = build().double(), build().double()
    ours, theirs = EQUAL[name][0](fused.parameters()), EQUAL[name][1](plain.parameters())
    for _ in range(5):
        losses = fused.local_step(x.double(), TARGET, ours)
        expected = _gradient_step(plain, x.double(), theirs)
        torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-11)
    for key, value in plain.state_dict().items():
        # Adam divides by the root of what may be rounding alone.
        torch.testing.assert_close(fused.state_dict()[key], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", NETS)
def test_gradients_of_half_batches_add_up(kind: str) -> None:
    build, x = NETS[kind]
    net, halves = build().eval(), build().eval()  # batch norm would see the halves
    net.local_losses(x, TARGET).sum().backward()
    for part in (slice(0, 12), slice(12, 24)):
        (halves.local_losses(x[part], TARGET[part]).sum() / 2).backward()
    for whole, added in zip(net.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(added.grad, whole.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", NETS)
def test_grad_scaler_and_autocast(kind: str) -> None:
    build, x = NETS[kind]
    nets = [build(), build()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in nets]
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = [net.local_losses(x, TARGET).sum() for net in nets]
        for optimizer in optimizers:
            optimizer.zero_grad()
        scaler.scale(losses[0]).backward()
        scaler.unscale_(optimizers[0])
        scaler.step(optimizers[0])
        scaler.update()
        losses[1].backward()
        optimizers[1].step()
    for scaled, plain in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        # A power of two changes no bits but where numbers are too small for bfloat16's sums.
        torch.testing.assert_close(scaled, plain, rtol=1e-3, atol=1e-4)
    before = copy.deepcopy(nets[0].state_dict())
    optimizers[0].zero_grad()
    scaler.scale(nets[0].local_losses(x * float("inf"), TARGET).sum()).backward()
    scaler.step(optimizers[0])
    scaler.update()
    assert scaler.get_scale() == 2.0**7
    for key, value in nets[0].named_parameters():
        assert torch.equal(value, before[key]), "a step with infinite gradients is skipped"


@pytest.mark.parametrize("kind", NETS)
def test_gradients_are_clipped(kind: str) -> None:
    build, x = NETS[kind]
    net = build()
    net.local_losses(x, TARGET).sum().backward()
    free = [p.grad.clone() for p in net.parameters()]
    norm = clip_grad_norm_(net.parameters(), 1e-2)
    assert norm > 1e-2
    for parameter, gradient in zip(net.parameters(), free, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * (1e-2 / norm), rtol=1e-4, atol=1e-8)


def test_convolutions_compile_to_one_graph() -> None:
    eager, net = _conv(), _conv()
    torch._dynamo.reset()
    losses = torch.compile(net.local_losses, fullgraph=True, backend="aot_eager")(IMAGES, TARGET)
    expected = eager.local_losses(IMAGES, TARGET)
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    expected.sum().backward()
    for now, then in zip(net.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(now.grad, then.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", NETS)
def test_a_deep_copy_learns_apart_and_alike(kind: str) -> None:
    build, x = NETS[kind]
    net = build()
    optimizer = optim.LocalAdam(net.parameters(), 1e-2)
    net.local_step(x, TARGET, optimizer)
    start, twin = copy.deepcopy(net.state_dict()), copy.deepcopy(net)
    twins = optim.LocalAdam(twin.parameters(), 1e-2)
    twins.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin.local_step(x, TARGET, twins)
    for key, value in net.state_dict().items():
        assert torch.equal(value, start[key])
    net.local_step(x, TARGET, optimizer)
    for key, value in net.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key])


@pytest.mark.parametrize("kind", NETS)
def test_saved_and_loaded_without_unpickling_code(kind: str) -> None:
    build, x = NETS[kind]
    net, other = build(seed=0), build(seed=1)
    optimizer = optim.LocalSGD(net.parameters(), 0.02, momentum=0.9)
    net.local_step(x, TARGET, optimizer)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["net"])
    theirs = torch.optim.SGD(other.parameters(), 0.02, momentum=0.9)  # the state is torch's own
    theirs.load_state_dict(saved["optimizer"])
    net.local_step(x, TARGET, optimizer)
    _gradient_step(other, x, theirs)
    torch.testing.assert_close(other.eval()(x), net.eval()(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize(
    "way", ["forward", "layer_scores", "local_losses", "local_step", "torch_step"]
)
def test_forward_hooks_see_every_way_a_layer_runs(kind: str, way: str) -> None:
    build, x = NETS[kind]
    net, quiet = build(), build()
    seen: list[str] = []
    for layer in net.local_layers:
        layer.register_forward_pre_hook(lambda m, args: seen.append("before"))
        layer.register_forward_hook(lambda m, args, y: seen.append(f"after {tuple(y.shape)}"))
        layer.register_forward_hook(lambda m, args, kw, y: seen.append("kw"), with_kwargs=True)

    def run(net: SpelaSequential) -> Tensor:
        if way == "forward":
            return net(x)
        if way == "layer_scores":
            return torch.stack(net.layer_scores(x))
        if way == "local_losses":
            return net.local_losses(x, TARGET)
        kind = optim.LocalSGD if way == "local_step" else torch.optim.SGD
        return net.local_step(x, TARGET, kind(net.parameters(), lr=0.1))

    assert torch.equal(run(net), run(quiet))
    assert [s for s in seen if s in ("before", "kw")] == ["before", "kw"] * len(net.local_layers)
    assert seen[-2:] == ["after (24, 8)", "kw"]


@pytest.mark.parametrize("way", ["local_losses", "local_step"])
@pytest.mark.parametrize("kind", NETS)
def test_hooks_may_replace_what_goes_in_and_out(kind: str, way: str) -> None:
    build, x = NETS[kind]
    net, plain = build(), build()
    net[0].register_forward_pre_hook(lambda m, args: (2 * args[0] + 1,))
    layer = net.local_layers[0]
    layer.register_forward_pre_hook(lambda m, args, kw: ((args[0] + 1,), kw), with_kwargs=True)
    layer.register_forward_hook(lambda m, args, y: y + 0.5)
    second = net.local_layers[1]
    inputs: list[Tensor] = []
    second.register_forward_pre_hook(lambda m, args: inputs.append(args[0].clone()))
    if way == "local_losses":
        net.local_losses(x, TARGET)
    else:
        net.local_step(x, TARGET, optim.LocalSGD(net.parameters(), lr=0.1))
    y = plain[0](2 * x + 1 + (1 if layer is net[0] else 0))
    if layer is not net[0]:
        y = plain[2](plain[1](y + 1) + 0.5)
    else:
        y = y + 0.5
    torch.testing.assert_close(inputs[0], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [optim.LocalSGD, torch.optim.SGD], ids=["LocalSGD", "SGD"])
@pytest.mark.parametrize("kind", NETS)
def test_pruned_and_reparametrised_layers_learn(kind: str, make: Callable) -> None:
    build, x = NETS[kind]
    net = build()
    first, last = net.local_layers[0], net.local_layers[-1]
    prune.random_unstructured(first, "weight", amount=0.5)
    parametrizations.weight_norm(last)
    zeros, before = first.weight == 0, copy.deepcopy(dict(net.named_parameters()))
    optimizer = make(net.parameters(), lr=0.02)
    losses = [net.local_step(x, TARGET, optimizer) for _ in range(6)]
    assert losses[-1][0] < losses[0][0]
    net(x)
    assert zeros.sum() > 5
    assert torch.equal(first.weight == 0, zeros)
    for key, value in net.named_parameters():
        if value.dim() > 1:
            assert not torch.equal(value, before[key]), key


def test_modules_in_between_may_work_in_place() -> None:
    nets = []
    for inplace in (False, True):
        g = torch.Generator().manual_seed(0)
        first = SpelaLinear(12, 8, 4, activation="identity", generator=g)
        net = SpelaSequential(first, nn.ReLU(inplace), SpelaLinear(8, 8, 4, generator=g))
        net.local_losses(ROWS, TARGET).sum().backward()
        nets.append(net)
    for plain, inplace in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(plain.grad, inplace.grad)


def test_hooks_on_parameters_see_gradients() -> None:
    net = _linear()
    norms: list[float] = []
    for parameter in net.parameters():
        parameter.register_hook(lambda gradient: norms.append(float(gradient.norm())))
    net.local_losses(ROWS, TARGET).sum().backward()
    assert len(norms) == 5
    assert min(norms) > 0


@pytest.mark.filterwarnings("error")  # of a scheduler that saw no optimizer.step()
def test_groups_and_schedulers_set_each_layers_rate() -> None:
    net = _linear()
    first, second = net.local_layers
    groups = [{"params": first.parameters(), "lr": 0.0}, {"params": second.parameters()}]
    optimizer = optim.LocalSGD(groups, lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda t: 1.0, lambda t: 0.5**t])
    before, steps = copy.deepcopy(net.state_dict()), []
    for _ in range(3):
        weight = second.weight.detach().clone()
        net.local_step(ROWS, TARGET, optimizer)
        scheduler.step()
        steps.append((second.weight - weight).norm().item())
    assert torch.equal(first.weight, before["1.weight"])
    assert steps[0] > 1.5 * steps[1] > 2 * steps[2] > 0
