"""Many steps in one call: the bits of the steps one by one, and which stacks take it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spela import RowNorm, SpelaLinear, SpelaSequential
from spela.layers.chain import steps_a_call
from spela.optim import LocalAdam, LocalSGD
from spela_kernels.linear import steps
from tests.spela.many_steps import OPTIMIZERS, RATES, small_stack, some_samples, state_of


def _one_by_one(net: SpelaSequential, optimizer: torch.optim.Optimizer) -> Tensor:
    """Every layer's own step, and the norms' own forward."""
    x, target = some_samples()
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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("objective", ["log", "softmax"])
def test_steps_have_the_bits_of_layers_one_by_one(objective: str, optimizer: str) -> None:
    x, target = some_samples()
    one, many, ones = (small_stack(objective=objective) for _ in range(3))
    make = OPTIMIZERS[optimizer]
    first, second, third = (make(net.parameters()) for net in (one, many, ones))
    expected = _one_by_one(one, first)
    assert torch.equal(many.local_steps(x, target, second, 10, RATES), expected)
    for rate, batch, labels in zip(RATES, x.split(10), target.split(10), strict=True):
        for group in third.param_groups:
            group["lr"] = rate
        ones.local_step(batch, labels, third)
    for net, other in ((many, second), (ones, third)):
        for ours, theirs in zip(state_of(net, other), state_of(one, first), strict=True):
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
    x, target = some_samples()
    net = small_stack(nn.Dropout().eval())
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
    x, target = some_samples(10)
    torch.manual_seed(3)
    net = change(small_stack())
    torch.manual_seed(3)
    same = change(small_stack())
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
    x, target = some_samples(23)
    counted, run = [], steps.prepare
    monkeypatch.setattr(
        "spela.optim.shared.prepare", lambda *given: counted.append(1) or run(*given)
    )
    results = []
    for many in (True, False):
        modules = list(small_stack())
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
    x, target = some_samples(23)
    sizes = np.array([3, 10, 1, 9])
    one, many, stepwise = small_stack(), small_stack(), small_stack(nn.Identity())
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
        for ours, theirs in zip(state_of(net, other), state_of(one, first), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.skipif(not steps.is_built(), reason="the passes were not built")
def test_images_are_flattened_in_front_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    x, target = some_samples()
    rows, images = small_stack(), SpelaSequential(nn.Flatten(), *small_stack())
    rows.local_steps(x, target, LocalSGD(rows.parameters(), 0.1), 10)
    monkeypatch.setattr(SpelaLinear, "local_step", None)  # not called
    images.local_steps(x.reshape(-1, 2, 3), target, LocalSGD(images.parameters(), 0.1), 10)
    assert all(
        torch.equal(a, b) for a, b in zip(rows.parameters(), images.parameters(), strict=True)
    )


def test_step_hooks_of_the_optimizer_are_called_for_every_layer_and_step() -> None:
    x, target = some_samples(20)
    net = small_stack()
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
    x, target = some_samples()
    net, same = small_stack(), small_stack()
    optimizer, other = (LocalAdam(n.parameters()) for n in (net, same))
    same.local_steps(x, target, other, 10, RATES)
    monkeypatch.setattr(steps, "_steps", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        net.local_steps(x, target, optimizer, 10, RATES)
    for ours, theirs in zip(state_of(net, optimizer), state_of(same, other), strict=True):
        assert torch.equal(ours, theirs)
    assert optimizer.param_groups[0]["lr"] == RATES[-1]


def test_many_classes_make_a_call_shorter() -> None:
    few, many = (SpelaSequential(SpelaLinear(10, 16, n, objective="softmax")) for n in (2, 1000))
    label = SpelaSequential(SpelaLinear(10, 16, 1000, objective="log"))
    assert steps_a_call(few, 50) > 50 * steps_a_call(many, 50)
    assert steps_a_call(label, 50) > 50 * steps_a_call(many, 50)


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("name", ["forward", "local_step", "local_loss"])
def test_a_method_set_on_an_instance_is_called(where: int, name: str) -> None:
    net, (x, target) = small_stack(), some_samples()
    module = net[where]
    if not hasattr(module, name):
        return
    called, own = [], getattr(module, name)

    def noted(*arguments: Any) -> Any:
        called.append(name)
        return own(*arguments)

    setattr(module, name, noted)
    plain = small_stack()
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
