"""Many steps in one call: the bits of the steps one by one, and nothing done where something is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spela import Frozen, RowNorm, SpelaBlock, SpelaConv2d, SpelaLinear, SpelaSequential
from spela.layers.chain import steps_a_call
from spela.optim import LocalAdam, LocalSGD, layer_groups
from spela_kernels.linear import steps

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda params: LocalSGD(params, 0.1),
    "momentum": lambda params: LocalSGD(params, 0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda params: LocalSGD(params, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda params: LocalAdam(params, 1e-2, weight_decay=1e-2),
    "torch": lambda params: torch.optim.Adam(params, 1e-2),
}
RATES = [0.1, 0.05, 0.02]


def _net(*between: nn.Module, objective: str = "softmax", **settings: Any) -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    first, second, third = (
        SpelaLinear(inputs, outputs, 5, objective=objective, generator=g, **settings)
        for inputs, outputs in ((6, 20), (20, 17), (17, 8))
    )
    return SpelaSequential(first, RowNorm("rms"), second, *between, RowNorm("unit"), third)


def _data(samples: int = 23) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(samples, 6, generator=g), torch.randint(5, (samples,), generator=g)


def _one_by_one(net: SpelaSequential, optimizer: torch.optim.Optimizer) -> Tensor:
    """Every layer's own step, and the norms' own forward."""
    x, target = _data()
    losses = []
    for rate, batch, labels in zip(RATES, x.split(10), target.split(10), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for module in net:
            if isinstance(module, SpelaLinear):
                loss, batch = module.local_step(batch, labels, optimizer)
                losses.append(loss)
            else:
                batch = module(batch)
    return torch.stack(losses).reshape(3, 3)


def _state(net: SpelaSequential, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    state = [v for p in net.parameters() for v in optimizer.state[p].values()]
    return [*net.parameters(), *(v for v in state if isinstance(v, Tensor))]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("objective", ["log", "softmax"])
def test_steps_have_the_bits_of_layers_one_by_one(objective: str, optimizer: str) -> None:
    x, target = _data()
    one, many, ones = (_net(objective=objective) for _ in range(3))
    make = OPTIMIZERS[optimizer]
    first, second, third = (make(net.parameters()) for net in (one, many, ones))
    expected = _one_by_one(one, first)
    assert torch.equal(many.local_steps(x, target, second, 10, RATES), expected)
    for rate, batch, labels in zip(RATES, x.split(10), target.split(10), strict=True):
        for group in third.param_groups:
            group["lr"] = rate
        ones.local_step(batch, labels, third)
    for net, other in ((many, second), (ones, third)):
        for ours, theirs in zip(_state(net, other), _state(one, first), strict=True):
            assert torch.equal(ours, theirs)
        assert [group["lr"] for group in other.param_groups] == [RATES[-1]]


@pytest.mark.skipif(not steps.is_built(), reason="the passes were not built")
def test_a_small_stack_takes_all_steps_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = steps.prepare

    def counted(layers: Any, *rest: Any) -> Any:
        calls.append(len(layers))
        return run(layers, *rest)

    monkeypatch.setattr("spela.optim.shared.prepare", counted)
    x, target = _data()
    net = _net(nn.Dropout().eval())
    net.local_steps(x, target, LocalAdam(net.parameters()), 10)
    assert calls == [3]


def _with_hook(net: SpelaSequential) -> SpelaSequential:
    net[2].register_forward_hook(lambda module, args, y: 2 * y)
    return net


def _frozen(net: SpelaSequential) -> SpelaSequential:
    net[0].requires_grad_(False)
    return net


@pytest.mark.parametrize(
    "change",
    [_with_hook, _frozen, lambda net: net.append(nn.Identity()).append(SpelaLinear(8, 8, 5))],
    ids=["hook", "frozen", "another module"],
)
def test_what_one_call_does_not_know_is_done_step_by_step(
    change: Callable[[SpelaSequential], SpelaSequential],
) -> None:
    x, target = _data(10)
    torch.manual_seed(3)
    net = change(_net())
    torch.manual_seed(3)
    same = change(_net())
    losses = net.local_steps(x, target, LocalSGD(net.parameters(), 0.1), 10)
    expected = same.local_losses(x, target)
    torch.testing.assert_close(losses[0], expected.detach())
    optimizer = torch.optim.SGD([p for p in same.parameters() if p.requires_grad], 0.1)
    expected.sum().backward()
    optimizer.step()
    for ours, theirs in zip(net.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("places", "calls"),
    [
        ({0: 0.2}, 1),
        ({2: 0.5, 4: 0.3}, 1),
        ({1: 0.5}, 0),  # in front of a norm
        ({4: 1.0}, 0),
    ],
    ids=str,
)
def test_dropout_draws_as_step_by_step(
    places: dict[int, float], calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, target = _data(23)
    counted, run = [], steps.prepare
    monkeypatch.setattr(
        "spela.optim.shared.prepare", lambda *given: counted.append(1) or run(*given)
    )
    results = []
    for many in (True, False):
        modules = list(_net())
        for place, share in sorted(places.items(), reverse=True):
            modules.insert(place, nn.Dropout(share))
        net = SpelaSequential(*modules)
        optimizer = LocalAdam(net.parameters(), 1e-2)
        torch.manual_seed(0)
        if many:
            net.local_steps(x, target, optimizer, 10, RATES)
            assert len(counted) == (calls if steps.is_built() else 0)
        else:
            _one_by_one(net, optimizer)
        results.append([*(p.detach().clone() for p in net.parameters()), torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (torch.tensor([0, 1, 5]), {}, "must hold labels 0..4, got 5"),
        (torch.tensor([0, 1]), {}, "one label per sample"),
        (torch.tensor([0, 1, 2]), {"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        (torch.tensor([0, 1, 2]), {"batch_size": [2, 2]}, "3 together.* got 4 together"),
        (torch.tensor([0, 1, 2]), {"batch_size": [3, 0]}, "at least 1, and 3 together.* got 0"),
        (torch.tensor([0, 1, 2]), {"batch_size": []}, "got 0 together"),
        (torch.tensor([0, 1, 2]), {"rates": [0.1]}, "2 steps need as many rates, got 1"),
        (torch.tensor([0, 1, 2]), {"rates": [0.1, -1.0]}, "finite in float32 and >= 0, got -1"),
        (
            torch.tensor([0, 1, 2]),
            {"rates": [0.1, 1e39]},
            r"finite in float32 and >= 0, got 1e\+39",
        ),
    ],
)
def test_what_is_refused_leaves_the_weights(
    target: Tensor, options: dict[str, Any], message: str
) -> None:
    net = _net()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match=message):
        net.local_steps(
            torch.ones(3, 6),
            target,
            LocalSGD(net.parameters(), 0.1),
            **{"batch_size": 2, **options},
        )
    unchanged = all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert unchanged


@pytest.mark.parametrize("convert", [np.array, torch.tensor, tuple])
def test_batch_sizes_of_any_integers(convert: Callable[[list[int]], Any]) -> None:
    net = SpelaSequential(SpelaLinear(5, 8, 3))
    x, target = torch.randn(7, 5), torch.arange(7) % 3
    optimizer = LocalSGD(net.parameters(), lr=0.1)
    assert net.local_steps(x, target, optimizer, batch_size=convert([4, 3])).shape == (2, 1)
    assert net.local_steps(x, target, optimizer, batch_size=np.array(4)).shape == (2, 1)
    for wrong in (4.0, convert([4, 3.0]), "4", None):
        with pytest.raises(TypeError, match="`batch_size` must be an integer or a sequence"):
            net.local_steps(x, target, optimizer, batch_size=wrong)


@pytest.mark.parametrize("rates", [None, [0.1, 0.2, 0.3, 0.4]], ids=["own rate", "rates"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_batches_may_differ_in_size(optimizer: str, rates: list[float] | None) -> None:
    x, target = _data(23)
    sizes = np.array([3, 10, 1, 9])
    one, many, stepwise = _net(), _net(), _net(nn.Identity())
    first, second, third = (OPTIMIZERS[optimizer](n.parameters()) for n in (one, many, stepwise))
    expected = []
    for k, (batch, labels) in enumerate(
        zip(x.split(sizes.tolist()), target.split(sizes.tolist()), strict=True)
    ):
        if rates is not None:
            for group in first.param_groups:
                group["lr"] = rates[k]
        expected.append(one.local_step(batch, labels, first))
    for net, other in ((many, second), (stepwise, third)):
        found = net.local_steps(x, target, other, tuple(sizes), rates)
        assert torch.equal(found, torch.stack(expected))
        for ours, theirs in zip(_state(net, other), _state(one, first), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_rates_may_be_an_array(kind: Callable[[list[float]], Any]) -> None:
    x, target = _data()
    nets = _net(), _net()
    for net, rates in zip(nets, (RATES, kind(RATES)), strict=True):
        net.local_steps(x, target, LocalAdam(net.parameters()), np.int64(10), rates)
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other)


def test_a_wrong_label_of_a_late_batch_is_found_before_the_first_step() -> None:
    x, target = _data()
    target[-1] = 5
    net = _net(nn.Identity())  # step by step
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match=r"must hold labels 0\.\.4, got 5"):
        net.local_steps(x, target, LocalSGD(net.parameters(), 0.1), 10)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_state_of_another_shape_is_refused() -> None:
    x, target = _data()
    net = _net()
    optimizer = LocalAdam(net.parameters())
    net.local_steps(x, target, optimizer, 10)
    optimizer.state[net[0].weight]["exp_avg"] = torch.zeros(3)  # as a foreign file may hold
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match="exp_avg of weight"):
        net.local_steps(x, target, optimizer, 10)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.skipif(not steps.is_built(), reason="the passes were not built")
def test_images_are_flattened_in_front_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    x, target = _data()
    rows, images = _net(), SpelaSequential(nn.Flatten(), *_net())
    rows.local_steps(x, target, LocalSGD(rows.parameters(), 0.1), 10)
    monkeypatch.setattr(SpelaLinear, "local_step", None)  # not called
    images.local_steps(x.reshape(-1, 2, 3), target, LocalSGD(images.parameters(), 0.1), 10)
    assert all(
        torch.equal(a, b) for a, b in zip(rows.parameters(), images.parameters(), strict=True)
    )


def test_step_hooks_of_the_optimizer_are_called_for_every_layer_and_step() -> None:
    x, target = _data(20)
    net = _net()
    optimizer = LocalSGD(net.parameters(), 0.1)
    seen: list[int] = []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    net.local_steps(x, target, optimizer, 10)
    assert len(seen) == 6


@pytest.mark.parametrize("late", ["bias", "weight"])
def test_a_part_that_learns_later_has_steps_of_its_own(late: str) -> None:
    x, target = torch.randn(7, 6, dtype=torch.float64), torch.arange(7) % 3
    layers = [SpelaLinear(6, 8, 3, dtype=torch.float64) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    ours, torchs = (
        LocalAdam(layers[0].parameters(), lr=0.01),
        torch.optim.Adam(layers[1].parameters(), lr=0.01),
    )
    for step in range(8):
        learns = step not in (0, 1, 4)  # late at first, and once more after all have learnt
        for layer, optimizer in zip(layers, (ours, torchs), strict=True):
            layer.get_parameter(late).requires_grad_(learns)
            layer.local_step(x, target, optimizer)
        for now, then in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
            torch.testing.assert_close(now, then)


@pytest.mark.parametrize("lr", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("kind", ["linear", "convolution", "block"])
def test_a_rate_that_is_no_rate_is_refused_before_anything_moves(kind: str, lr: float) -> None:
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    x, target = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
    net = {
        "linear": SpelaSequential(nn.Flatten(), SpelaLinear(64, 8, 3), SpelaLinear(8, 8, 3)),
        "convolution": SpelaSequential(
            SpelaConv2d(1, 4, 3, 3, output_size=(3, 3), symmetric_dim=4)
        ),
        "block": SpelaSequential(SpelaBlock(body, 3, x)),
    }[kind]
    for optimizer in (LocalSGD(net.parameters(), lr=0.1), LocalAdam(net.parameters(), lr=0.1)):
        optimizer.param_groups[0]["lr"] = lr
        before = {name: value.clone() for name, value in net.state_dict().items()}
        with pytest.raises(ValueError, match="`lr` must be in"):
            net.local_step(x, target, optimizer)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_rates_fill_a_rate_that_is_a_tensor() -> None:
    lr = torch.tensor(0.1)
    net = SpelaSequential(SpelaLinear(5, 8, 3))
    for optimizer in (LocalSGD(net.parameters(), lr=lr), torch.optim.SGD(net.parameters(), lr=lr)):
        net.local_steps(torch.randn(6, 5), torch.arange(6) % 3, optimizer, 3, [0.2, 0.3])
        assert optimizer.param_groups[0]["lr"] is lr
        assert lr == torch.tensor(0.3)


def test_one_sample_for_a_later_similarity_loss_is_refused_before_an_earlier_layer_learns() -> None:
    x = torch.randn(5, 6)
    net = SpelaSequential(
        SpelaBlock(nn.Linear(6, 4), 3, x), SpelaBlock(nn.Linear(4, 4), 3, x[:, :4], similarity=0.5)
    )
    optimizer = LocalSGD(net.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="similarity loss of module 1"):
        net.local_step(x[:1], torch.tensor([1]), optimizer)
    with pytest.raises(ValueError, match="similarity loss of module 1"):
        net.local_steps(x, torch.arange(5) % 3, optimizer, 4)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_first_module_that_works_in_place_leaves_the_callers_batch() -> None:
    x = torch.randn(6, 5)
    before = x.clone()
    net = SpelaSequential(nn.ReLU(inplace=True), SpelaLinear(5, 8, 3))
    net.local_step(x, torch.arange(6) % 3, LocalSGD(net.parameters(), lr=0.1))
    assert torch.equal(x, before)


@pytest.mark.skipif(not steps.is_built(), reason="the passes were not built")
def test_steps_that_ctrl_c_follows_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        scratch = staticmethod(steps._steps.scratch)

        @staticmethod
        def run(*given: Any) -> None:
            compiled.run(*given)
            raise KeyboardInterrupt  # as Python does when the call returns

    compiled = steps._steps
    x, target = _data()
    net, same = _net(), _net()
    optimizer, other = (LocalAdam(n.parameters()) for n in (net, same))
    same.local_steps(x, target, other, 10, RATES)
    monkeypatch.setattr(steps, "_steps", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        net.local_steps(x, target, optimizer, 10, RATES)
    for ours, theirs in zip(_state(net, optimizer), _state(same, other), strict=True):
        assert torch.equal(ours, theirs)
    assert optimizer.param_groups[0]["lr"] == RATES[-1]


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
def test_a_refused_batch_leaves_the_rate(lr: Any) -> None:
    net = SpelaSequential(SpelaLinear(4, 8, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    with pytest.raises(ValueError, match="5"):
        net.local_steps(torch.randn(6, 5), torch.arange(6) % 3, optimizer, [4, 2], [0.1, 0.2])
    assert optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == 0.5


@pytest.mark.parametrize("rates", [None, [0.1]], ids=["own rate", "rates"])
@pytest.mark.parametrize("activation", ["gelu", "tanh"])
def test_a_rate_that_is_none_of_a_later_group_is_found_before_the_first_layer(
    activation: str, rates: list[float] | None
) -> None:
    net = SpelaSequential(*(SpelaLinear(6, 6, 3, activation=activation) for _ in range(2)))
    optimizer = LocalAdam(layer_groups(net, [0.1, 0.1]))
    optimizer.param_groups[1]["lr"] = float("nan")
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match="`lr` must be in"):
        net.local_steps(torch.randn(5, 6), torch.arange(5) % 3, optimizer, 5, rates)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_rates_are_of_the_layers_that_learn() -> None:
    net = SpelaSequential(Frozen(SpelaSequential(SpelaLinear(4, 4, 3))), SpelaLinear(4, 8, 3))
    (group,) = layer_groups(net, [0.1])
    assert [*map(id, group["params"])] == [*map(id, net[1].parameters())]


def test_many_classes_make_a_call_shorter() -> None:
    few, many = (SpelaSequential(SpelaLinear(10, 16, n, objective="softmax")) for n in (2, 1000))
    label = SpelaSequential(SpelaLinear(10, 16, 1000, objective="log"))
    assert steps_a_call(few, 50) > 50 * steps_a_call(many, 50)
    assert steps_a_call(label, 50) > 50 * steps_a_call(many, 50)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("kind", ["linear", "projection"])
def test_a_refused_batch_leaves_no_optimizer_state(make: Make, kind: str) -> None:
    # What it left would be in the dtype of then.
    x, target = _data()
    layer: nn.Module = SpelaLinear(6, 8, 5)
    if kind == "projection":
        layer, x = SpelaBlock(nn.Linear(6, 8), 5, x[:2], projection=4), x
    net = SpelaSequential(layer)
    optimizer = make(net.parameters())
    with pytest.raises((TypeError, RuntimeError)):
        net.local_step(x.double(), target, optimizer)
    assert not any(optimizer.state.values())
    net.double().local_step(x.double(), target, optimizer)
    moments = [v for p in net.parameters() for k, v in optimizer.state[p].items() if k != "step"]
    assert all(moment.dtype == torch.float64 for moment in moments)


def test_a_rate_of_one_element_is_a_rate() -> None:
    found = []
    for rate in (0.1, torch.tensor(0.1), torch.tensor([0.1])):
        net = _net()
        found.append(net.local_step(*_data(), LocalSGD(net.parameters(), lr=rate)))
        found.append(net[0].weight.detach())
    assert all(torch.equal(one, other) for one, other in zip(found[:2] * 2, found[2:], strict=True))


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("name", ["forward", "local_step", "local_loss"])
def test_a_method_set_on_an_instance_is_called(where: int, name: str) -> None:
    net, (x, target) = _net(), _data()
    module = net[where]
    if not hasattr(module, name):
        return
    called, own = [], getattr(module, name)

    def noted(*arguments: Any) -> Any:
        called.append(name)
        return own(*arguments)

    setattr(module, name, noted)
    plain = _net()
    losses = net.local_step(x, target, LocalSGD(net.parameters(), 0.1))
    torch.testing.assert_close(
        losses, plain.local_step(x, target, LocalSGD(plain.parameters(), 0.1))
    )
    # A layer's step is its own op, which passes neither through forward nor through local_loss.
    assert bool(called) is (name == "local_step" or where == 1)


def test_signs_that_are_yet_to_be_turned_are_turned() -> None:
    x = torch.tensor([[1 + 2j]]).conj().imag
    assert x.is_neg()
    found = []
    for rows in (x, x.clone()):
        g = torch.Generator().manual_seed(0)
        net = SpelaSequential(SpelaLinear(1, 16, 3, generator=g))
        found.append(net.local_step(rows, torch.tensor([1]), LocalSGD(net.parameters(), 0.1)))
    assert torch.equal(*found)
    rows = torch._neg_view(torch.randn(5, 8))
    torch.testing.assert_close(RowNorm()(rows), RowNorm()(rows.clone()))
