"""What cannot be cut, or would learn otherwise in parts, is said before anything is made."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spela import convert
from spela.cutting import cut_network
from spela.optim import LocalSGD


class _Net(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU(inplace=True)
        self.c = nn.Linear(6, 10)
        self.run = forward

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def _skip(net: Any, x: Tensor) -> Tensor:
    first = net.a(x)
    return net.c(net.b(first) + first)


def _branch(net: Any, x: Tensor) -> Tensor:
    return net.c(net.a(x) if x.sum() > 0 else net.b(x))


def _dropout(net: Any, x: Tensor) -> Tensor:
    return net.c(nn.functional.dropout(net.a(x), 0.5, net.training))


def _in_place(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y.add_(1)
    return net.c(net.b(y))


@pytest.mark.parametrize(
    ("forward", "how", "message"),
    [
        (_skip, {"cut": ["b"]}, r"cannot cut behind 'b': 2 values pass there \(a, b\)"),
        (_skip, {"cut": ["d"]}, "'d', which is no module of _Net"),
        (_skip, {"cut": ["act"]}, "'act', which _Net does not call"),
        (_skip, {"cut": ["c"]}, "behind which nothing is left"),
        (_skip, {"cut": ["c", "a"]}, "behind which nothing is left"),
        (_in_place, {"cut": ["b", "a"]}, "'a' after 'b', but it ends before"),
        (_in_place, {"cut": ["a"]}, "what comes next changes its output in place"),
        (_skip, {"blocks": 0}, "`blocks` must be at least 1"),
        (_skip, {"blocks": 4}, "at most 3 blocks"),
        (_skip, {}, "give `blocks`, how many parts, or `cut`"),
        (_branch, {"blocks": 2}, r"_Net cannot be traced \(.*control flow"),
        (_dropout, {"blocks": 2}, "does other things in training than in evaluation"),
    ],
)
def test_what_cannot_be_cut_is_said(forward: Any, how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut_network(_Net(forward), torch.randn(2, 6), **how)


def test_what_tracing_would_lose_is_refused() -> None:
    x = torch.randn(4, 6)
    hooked, own = (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))
    hooked.register_forward_hook(lambda module, args, y: -y)
    own.forward = lambda x: -nn.Sequential.forward(own, x)  # type: ignore[method-assign]
    for model, message in (
        (hooked, r"the network \(Sequential\) has a forward hook, which is lost"),
        (own, "do not give its output"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(model, 3, x, blocks=2)


class _Careful(nn.Module):
    """A division that 16 bits would not bear, so autocast is off there."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mean = nn.Linear(6, 64), nn.Linear(64, 1, bias=False)
        nn.init.constant_(self.mean.weight, 1 / 64)
        with torch.no_grad():
            self.a.weight.mul_(0.02)
            self.a.bias.add_(50)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        with torch.autocast("cpu", enabled=False):
            y = y.float() - self.mean(y.float())
            return y * torch.rsqrt(self.mean(y.square()) + 1e-6)


class _CarefulFirst(_Careful):
    """The same, where a module inside is the first that runs without autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.mean(self.a(x))


def test_whoever_turns_autocast_off_is_kept_whole_not_the_module_inside() -> None:
    x = torch.randn(5, 6)
    model = nn.Sequential(_CarefulFirst(), nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 3))
    parts = nn.Sequential(*cut_network(model, x, 2))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(parts(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("around", [False, True])
def test_a_module_that_turns_autocast_off_is_kept_whole(around: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    model = nn.Sequential(_Careful(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        parts = nn.Sequential(*cut_network(model, x, 2))
        with pytest.raises(
            ValueError, match=r"_Careful cannot be traced \(its forward turns autocast"
        ):
            cut_network(_Careful(), x, 1)
        assert torch.is_autocast_enabled("cpu") is around
    assert not torch.is_autocast_enabled("cuda")
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            torch.testing.assert_close(parts(x), model(x), rtol=0, atol=0)


def test_hooks_of_what_is_dissolved_are_refused_and_not_called_with_proxies() -> None:
    seen: list[Any] = []
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 3))
        getattr(model[0], register)(lambda module, args, *y: seen.append(args[0]))
        with pytest.raises(ValueError, match=r"module '0' \(Sequential\) has a forward hook"):
            convert(model, 3, torch.randn(4, 6), blocks=2)
    assert all(type(value) is Tensor for value in seen)
    kept = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    kept[0].register_forward_hook(lambda module, args, y: -y)
    x = torch.randn(4, 6)
    parts = cut_network(kept, x, 2)
    torch.testing.assert_close(nn.Sequential(*parts)(x), kept(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_gradient_hook_on_a_parameter_is_refused(name: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    handle = getattr(model[0].weight, name)(lambda gradient: None)
    with pytest.raises(
        ValueError, match=r"parameter '0\.weight' of Sequential has a gradient hook"
    ):
        convert(model, 3, torch.randn(4, 6), blocks=2)
    handle.remove()
    assert len(convert(model, 3, torch.randn(4, 6), blocks=2)) == 2


class _LayerDrop(nn.Module):
    """Leaves layers out in training, by a generator that is not torch's."""

    def __init__(self, draw: Any) -> None:
        super().__init__()
        self.layers, self.c = nn.ModuleList(nn.Linear(6, 6) for _ in range(3)), nn.Linear(6, 3)
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if not (self.training and self.draw() < 0.1):
                x = x + torch.relu(layer(x))
        return self.c(x)


@pytest.mark.parametrize("draw", [random.random, lambda: np.random.random()])
def test_layers_that_are_left_out_by_chance_are_refused(draw: Any) -> None:
    random.seed(0)
    np.random.seed(0)
    states = random.getstate(), np.random.get_state()
    with pytest.raises(ValueError, match="draws from Python's or NumPy's generator"):
        convert(_LayerDrop(draw), 3, torch.randn(4, 6), blocks=2)
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1][1]).all()
    assert np.random.get_state()[2] == states[1][2]


class _Backbone(nn.Module):
    """A network whose first layer learns nothing, by its forward alone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.backbone(x)
        return self.head(y)


class _Sign(torch.autograd.Function):
    """A step whose gradient passes as if it were none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _straight_through(net: Any, x: Tensor) -> Tensor:
    return net.c(net.b(_Sign.apply(net.a(x))))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(
    ("model", "parameter"),
    [(_Backbone(), "backbone.weight"), (_Net(_straight_through), "a.weight")],
)
def test_what_tracing_would_train_otherwise_is_refused(
    model: nn.Module, parameter: str, blocks: int
) -> None:
    generator = torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"{parameter} gets another gradient than in the network"):
        cut_network(model, torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), blocks)
    assert torch.equal(generator, torch.get_rng_state())


def test_such_a_function_in_a_module_of_its_own_is_kept() -> None:
    class Sign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return _Sign.apply(x)

    model = nn.Sequential(nn.Linear(6, 8), Sign(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    net = convert(model, 3, torch.randn(4, 6), blocks=1)
    before = net.local_layers[0].body.get_submodule("0").weight.detach().clone()
    net.local_step(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]), LocalSGD(net.parameters(), lr=1))
    assert not torch.equal(before, net.local_layers[0].body.get_submodule("0").weight)


@pytest.mark.filterwarnings("ignore:.*backward hook:UserWarning")
def test_a_backward_hook_that_nobody_would_call_is_refused() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 3))
    called: list[str] = []
    hook = model[0].register_full_backward_hook(lambda *_: called.append("container"))
    with pytest.raises(ValueError, match=r"module '0' \(Sequential\) has a backward hook"):
        convert(model, 3, torch.randn(4, 6), blocks=1)
    hook.remove()
    model[0][0].register_full_backward_hook(lambda *_: called.append("layer"))
    net = convert(model, 3, torch.randn(4, 6), blocks=1)
    called.clear()
    net.local_step(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]), LocalSGD(net.parameters(), lr=1))
    assert called == ["layer"]


class _Volumes(nn.Module):
    """Maps of three axes, which no head can read, between a map and a row."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv3d(2, 4, 3, padding=1)
        self.c = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.b(self.a(x).unflatten(1, (2, 4))))
        return self.c(y.mean((2, 3, 4)))


def test_no_network_is_cut_where_a_head_could_not_read() -> None:
    x = torch.randn(4, 3, 6, 6)
    net = convert(_Volumes(), 3, x, blocks="layers")
    assert [tuple(layer.body(x).shape) for layer in net.local_layers[:1]] == [(4, 8, 6, 6)]
    assert len(net.local_layers) == 3
    with pytest.raises(
        ValueError, match="behind 'b': what passes there is no float tensor of 2 to 4"
    ):
        convert(_Volumes(), 3, x, cut="b")


class _TimeFirst(nn.Module):
    """The batch is the second axis inside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.d = nn.Linear(4, 8), nn.Linear(8, 3)
        layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0) for _ in range(2)]
        self.b, self.c = layers

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x).transpose(0, 1))).mean(0))


@pytest.mark.parametrize("samples", [3, 5, 6, 12])
def test_another_axis_as_long_as_the_batch_is_not_taken_for_it(samples: int) -> None:
    x = torch.randn(samples, 6, 4)
    with pytest.raises(ValueError, match="at most 3 blocks"):
        convert(_TimeFirst(), 3, x, blocks=4)
    net = convert(_TimeFirst(), 3, x, blocks=3).eval()
    other = torch.cat([x[:1], torch.randn(samples - 1, 6, 4)])
    for scores, others in zip(net.layer_scores(x), net.layer_scores(other), strict=True):
        torch.testing.assert_close(scores[0], others[0])


def test_computed_weights_are_said_by_name() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    model(torch.randn(4, 6))
    with pytest.raises(
        ValueError, match=r"module '0' \(Linear\) cannot be copied, its weight is comp"
    ):
        convert(model, 3, torch.randn(4, 6), blocks=2)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"blocks": "three"}, "`blocks` must be an integer or 'layers', got 'three'"),
        ({"blocks": 2.0}, "`blocks` must be an integer, got 2.0"),
        ({"cut": []}, "`cut` names no module"),
        ({"cut": [1]}, r"`cut` names 1, .*: its modules are '0', '1', '2', \.\.\."),
    ],
)
def test_how_to_cut_is_asked_for_clearly(how: dict[str, Any], message: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises((TypeError, ValueError), match=message):
        cut_network(model, torch.randn(4, 6), **how)


class _Counting(nn.Module):
    """A moving mean of its inputs and a count of its calls, written in forward."""

    def __init__(self, write: Any) -> None:
        super().__init__()
        self.first, self.last, self.write = nn.Linear(6, 6), nn.Linear(6, 3), write
        self.register_buffer("centre", torch.zeros(6))
        self.register_buffer("calls", torch.tensor(0))
        self.plain = torch.zeros(6)

    def forward(self, x: Tensor) -> Tensor:
        self.write(self, x.detach().mean(0))
        return self.last(torch.relu(self.first(x)))


def _set_mean(net: Any, mean: Tensor) -> None:
    net.centre = 0.9 * net.centre + 0.1 * mean


def _set_count(net: Any, _: Tensor) -> None:
    net.calls += 1


def test_buffers_that_forward_writes_into_move_as_in_the_network() -> None:
    def write(net: Any, mean: Tensor) -> None:
        net.centre.mul_(0.9).add_(0.1 * mean)
        net.calls.add_(1)

    model, x = _Counting(write), torch.randn(8, 6) + 5
    net = convert(model, 3, x, blocks=2)
    assert int(model.calls) == int(net[0].body.calls) == 0
    optimizer = LocalSGD(net.parameters(), lr=0.1)
    for _ in range(5):
        model(x)
        net.local_step(x, torch.arange(8) % 3, optimizer)
    assert int(net[0].body.calls) == 5
    torch.testing.assert_close(net[0].body.centre, model.centre)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (_set_mean, "centre"),
        (_set_count, "calls"),
        (lambda net, mean: net.plain.add_(1), "plain"),
    ],
)
def test_tensors_that_forward_sets_are_refused(write: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"sets or changes '{name}', lost in tracing"):
        convert(_Counting(write), 3, torch.randn(8, 6), blocks=2)


class _Turning(nn.Module):
    """A way that depends on values, in a module that others stand beside; it notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        self.given = x.detach()
        return self.c(-self.a(x) if x.sum() > 0 else self.a(x))


def test_a_module_that_cannot_be_traced_is_kept_whole() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.turning, self.last = (
                nn.Linear(6, 6),
                nn.Sequential(_Turning()),
                nn.Linear(6, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.turning(self.first(x))))

    model, x = Net(), torch.randn(5, 6)
    parts = cut_network(model, x, "layers")
    assert [[name for name, _ in part.named_children()] for part in parts] == [
        ["first"],
        ["turning"],
        ["last"],
    ]
    for sign in (1, -1):
        given = sign * x.abs()
        torch.testing.assert_close(nn.Sequential(*parts)(given), model(given), rtol=0, atol=0)
    given = getattr(parts[1].get_submodule("turning.0"), "given", x)  # no proxy of the tracing
    assert isinstance(given, Tensor)
    with pytest.raises(ValueError, match="at most 3 blocks"):
        cut_network(model, x, 4)


def test_tensors_that_forward_makes_are_constants_of_the_parts() -> None:
    def shifted(net: Any, x: Tensor) -> Tensor:
        return net.c(
            torch.relu(net.b(net.a(x) + torch.tensor([1.0, 2, 3, 4, 5, 6]))) + torch.ones(6)
        )

    model, x = _Net(shifted), torch.randn(4, 6)
    parts = cut_network(model, x, "layers")
    assert len(parts) == 3
    torch.testing.assert_close(nn.Sequential(*parts)(x), model(x), rtol=0, atol=0)
    noisy = _Net(lambda net, x: net.c(net.b(net.a(x) + torch.rand(6))))
    with pytest.raises(ValueError, match=r"makes a tensor of other values at every call, \(6,\)"):
        cut_network(noisy, x, 2)


def _tied_net() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    return model


def test_parts_do_not_share_a_parameter() -> None:
    x = torch.randn(4, 6)
    net = convert(_tied_net(), 3, x, blocks="layers")
    assert [[name for name, _ in b.body.named_children()] for b in net] == [
        ["0", "1", "2", "3"],
        ["4"],
    ]
    net.local_step(x, torch.arange(4) % 3, LocalSGD(net.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="at most 2 blocks"):
        convert(_tied_net(), 3, x, blocks=3)
    with pytest.raises(ValueError, match=r"behind '1': '0.weight' is used before and behind"):
        convert(_tied_net(), 3, x, cut="1")

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(nn.functional.linear(self.a(x), self.a.weight)))

    with pytest.raises(ValueError, match=r"behind 'a': 'a.weight' is used before and behind"):
        convert(Functional(), 3, x, cut="a")
    frozen = _tied_net()
    frozen[0].weight.requires_grad_(False)  # what does not learn may stand in several parts
    assert len(convert(frozen, 3, x, blocks=3)) == 3
    with pytest.raises(ValueError, match="names '1' 2 times"):
        convert(_tied_net(), 3, x, cut=["1", "1"])
