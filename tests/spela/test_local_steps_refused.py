"""Many steps in one call: nothing is done where something is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spela import SpelaBlock, SpelaLinear, SpelaSequential
from spela.optim import LocalAdam, LocalSGD
from tests.spela.many_steps import OPTIMIZERS, Make, small_stack, some_samples


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
    net = small_stack()
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


def test_a_wrong_label_of_a_late_batch_is_found_before_the_first_step() -> None:
    x, target = some_samples()
    target[-1] = 5
    net = small_stack(nn.Identity())  # step by step
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match=r"must hold labels 0\.\.4, got 5"):
        net.local_steps(x, target, LocalSGD(net.parameters(), 0.1), 10)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_state_of_another_shape_is_refused() -> None:
    x, target = some_samples()
    net = small_stack()
    optimizer = LocalAdam(net.parameters())
    net.local_steps(x, target, optimizer, 10)
    optimizer.state[net[0].weight]["exp_avg"] = torch.zeros(3)  # as a foreign file may hold
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match="exp_avg of weight"):
        net.local_steps(x, target, optimizer, 10)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


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


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("kind", ["linear", "projection"])
def test_a_refused_batch_leaves_no_optimizer_state(make: Make, kind: str) -> None:
    # What it left would be in the dtype of then.
    x, target = some_samples()
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
