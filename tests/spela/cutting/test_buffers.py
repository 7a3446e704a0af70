"""Buffers of networks that are cut: one that changes stays in one part, also on its way through files."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from spela import Frozen, SpelaBlock, convert
from spela.cutting import cut_network
from spela.layers.modes import probing


class _Counting(nn.Module):
    """Counts its calls in a buffer, which is read again at its end."""

    seen: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("shift", torch.full((6,), 0.5))
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        y = torch.relu(self.a(x - self.shift[None]))
        return self.c(torch.relu(self.b(y * (1 + self.seen)))) + self.shift[:3]


def _run(parts: list[nn.Module], x: Tensor) -> Tensor:
    for part in parts:
        x = part(x)
    return x


def test_a_buffer_that_changes_stays_in_one_part() -> None:
    x, model = torch.randn(5, 6), _Counting()
    with pytest.raises(ValueError, match=r"'seen' is used before and behind, .* nor a buffer that"):
        cut_network(model, x, cut=["a"])
    parts = cut_network(model, x, 3)
    assert [[name for name, _ in part.named_buffers()] for part in parts] == [
        ["seen", "shift"],
        [],
        ["shift"],  # only read, so each part may have it
    ]
    both = nn.ModuleList(parts)
    for double in (False, True):
        if double:  # makes every registration of a buffer a tensor of its own
            model, both, x = model.double(), both.double(), x.double()
        for _ in range(3):
            torch.testing.assert_close(_run(list(both), x), model(x), rtol=0, atol=0)


def test_a_normalisation_that_two_steps_share_stays_in_one_part() -> None:
    norm = nn.BatchNorm1d(8, affine=False)
    model = nn.Sequential(nn.Linear(6, 8), norm, nn.ReLU(), nn.Linear(8, 8), norm, nn.Linear(8, 3))
    x = torch.randn(5, 6)
    parts = cut_network(model, x, "layers")
    assert [len(list(part.buffers())) for part in parts] == [0, 3, 0]
    both = nn.ModuleList(parts).double()
    model.double()
    for _ in range(2):
        torch.testing.assert_close(_run(list(both), x.double()), model(x.double()), rtol=0, atol=0)


@pytest.mark.parametrize("through", ["pickle", "torch.save", "deepcopy"])
def test_a_network_of_blocks_comes_back_and_goes_on_alike(through: str) -> None:
    x = torch.randn(5, 6)
    net = convert(_Counting(), 3, x, blocks=2)
    if through == "pickle":
        other = pickle.loads(pickle.dumps(net))
    elif through == "torch.save":
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copy.deepcopy(net)
    assert list(other.state_dict()) == list(net.state_dict())
    for value, mine in zip(other.state_dict().values(), net.state_dict().values(), strict=True):
        assert torch.equal(value, mine)
    for _ in range(3):
        torch.testing.assert_close(other(x), net(x), rtol=0, atol=0)
    other.load_state_dict(net.state_dict())


class _Reassigning(nn.Module):
    """Puts another tensor in its buffer's place."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.a(x)


def test_probing_puts_back_what_forward_puts_in_a_buffers_place() -> None:
    x, body = torch.randn(5, 6), _Reassigning()
    before = body.calls
    with probing(body):
        body(x)
        assert body.calls == 1
    assert body.calls is before
    SpelaBlock(body, 3, x)
    assert body.calls is before
    convert(nn.Sequential(nn.Linear(8, 3)), 3, x, frozen=body)
    assert body.calls is before


def test_a_frozen_module_inside_keeps_its_statistics_in_training() -> None:
    inside = Frozen(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()))
    model = nn.Sequential(inside, nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    net = convert(model, 3, torch.randn(4, 6), blocks=2).train()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm1d)]
    assert [norm.training for norm in norms] == [False]
