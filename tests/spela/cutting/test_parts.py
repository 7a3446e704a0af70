"""Networks cut into parts: the same outputs and weights, at the best places."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from spela import convert
from spela.bodies import build_body
from spela.cutting import cut_network, split_evenly
from spela.optim import LocalSGD
from tests.spela.networks_to_cut import NETWORKS, small_cnn, stored_bytes


@pytest.mark.parametrize("blocks", [1, 2, 3, "layers"])
@pytest.mark.parametrize("name", NETWORKS)
def test_parts_give_the_networks_output_with_its_weights(name: str, blocks: Any) -> None:
    torch.manual_seed(0)
    make, size = NETWORKS[name]
    model = make()
    model.eval()
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, size, size)
    parts = cut_network(model, x, blocks)
    if blocks != "layers":
        assert len(parts) == blocks
    y = x
    for part in parts:
        y = part(y)
    assert torch.equal(y, model(x))
    held = {key: value for part in parts for key, value in part.state_dict().items()}
    assert held.keys() == state.keys()
    assert sum(len(part.state_dict()) for part in parts) == len(state)
    assert all(torch.equal(held[key], value) for key, value in state.items())
    # The model is another one, and no statistic of either moved.
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert not {id(p) for part in parts for p in part.parameters()} & {
        id(p) for p in model.parameters()
    }
    assert not any(
        module.training for part in parts for module in part.modules() if module._parameters
    )


@pytest.mark.parametrize(("name", "most"), [("sequential", 4), ("resnet", 6), ("vit", 10)])
def test_layers_are_as_many_parts_as_there_are_places(name: str, most: int) -> None:
    make, size = NETWORKS[name]
    x = torch.randn(2, 3, size, size)
    assert len(cut_network(make(), x, "layers")) == most
    with pytest.raises(ValueError, match=rf"`blocks` is {most + 1}, but .* at most {most} blocks"):
        cut_network(make(), x, most + 1)


def test_parts_begin_with_a_layer_and_nothing_is_lost() -> None:
    parts = cut_network(small_cnn(), torch.randn(2, 3, 16, 16), "layers")
    kinds = [[type(m).__name__ for m in part.modules() if not m._modules] for part in parts]
    assert kinds == [
        ["Conv2d", "BatchNorm2d", "ReLU"],
        ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"],
        ["Conv2d", "ReLU", "Flatten", "Dropout"],
        ["Linear"],
    ]


def test_a_slice_of_a_batch_is_cut_like_a_batch_of_its_own() -> None:
    """Its storage holds the whole batch, which the first part does not store."""
    model, batch = build_body("resnet", (3, 32, 32), 4, seed=0), torch.randn(256, 3, 32, 32)
    places = [
        [sum(p.numel() for p in part.parameters()) for part in cut_network(model, x, 3)]
        for x in (batch[:2], batch[:2].clone())
    ]
    assert places[0] == places[1]


@pytest.mark.parametrize("name", ["sequential", "resnet", "vit"])
def test_the_largest_part_stores_the_least_that_is_possible(name: str) -> None:
    """Against every pair of places."""
    make, size = NETWORKS[name]
    model, x = make().train(), torch.randn(4, 3, size, size)
    singles, sizes = cut_network(model, x, "layers"), []
    y = x
    for part in singles:
        sizes.append(stored_bytes(part, y))
        y = part(y).detach()
    count = len(sizes)
    least = min(
        max(sum(sizes[:a]), sum(sizes[a:b]), sum(sizes[b:]))
        for a in range(1, count - 1)
        for b in range(a + 1, count)
    )
    lengths = [sum(1 for _ in part.parameters()) for part in cut_network(model, x, 3)]
    own = [sum(1 for _ in part.parameters()) for part in singles]
    ends = [sum(lengths[: i + 1]) for i in range(3)]
    runs, index = [], 0
    for end in ends:
        run = 0
        while index < count and sum(own[: index + 1]) <= end:
            run += sizes[index]
            index += 1
        runs.append(run)
    assert sum(runs) == sum(sizes)
    assert max(runs) == least


def test_cuts_by_name() -> None:
    torch.manual_seed(0)
    model, x = models.resnet18(num_classes=10).eval(), torch.randn(2, 3, 32, 32)
    parts = cut_network(model, x, cut=["layer1", "layer2.0", "avgpool"])
    assert [list(dict(part.named_children())) for part in parts] == [
        ["conv1", "bn1", "relu", "maxpool", "layer1"],
        ["layer2"],
        ["layer2", "layer3", "layer4", "avgpool"],
        ["fc"],
    ]
    y = x
    for part in parts:
        y = part(y)
    assert torch.equal(y, model(x))


@pytest.mark.parametrize(
    "costs", [(5,), (1, 2, 3, 4), (4, 3, 2, 1), (0, 0, 7), (3, 3, 1, 9, 2, 2), (1,) * 7]
)
def test_no_split_has_a_faster_slowest_stage(costs: tuple[int, ...]) -> None:
    for parts in range(1, len(costs) + 1):
        found = split_evenly(costs, parts)
        assert sorted(set(found)) == list(range(parts))
        assert found == sorted(found)
        slowest = max(
            sum(c for c, p in zip(costs, found, strict=True) if p == k) for k in set(found)
        )
        best = min(
            max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *cuts, len(costs))))
            for cuts in itertools.combinations(range(1, len(costs)), parts - 1)
        )
        assert slowest == best
    with pytest.raises(ValueError, match="cannot be cut into"):
        split_evenly(costs, len(costs) + 1)


def test_cutting_draws_nothing_and_takes_a_sample_of_one() -> None:
    layers = (nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1))
    more = (nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))
    model = nn.Sequential(*layers, *more).train()
    x = torch.randn(1, 3, 8, 8)
    torch.manual_seed(0)
    parts = cut_network(model, x, 3)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert len(parts) == 3


class _WithOptions(nn.Module):
    """A forward with arguments that nobody passes, as timm's transformers have."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(
        self,
        x: Tensor = None,
        mask: Tensor | None = None,
        doubled: bool = False,
        share: float = 0.5,
    ) -> Tensor:
        h = torch.relu(self.first(x))
        if mask is not None:
            h = h * mask
        if doubled:
            h = 2 * h
        return self.second(share * h)


def test_arguments_that_are_not_passed_keep_their_defaults() -> None:
    model, x = _WithOptions(), torch.randn(6, 4)
    parts = cut_network(model, x, 2)
    assert len(parts) == 2
    torch.testing.assert_close(parts[1](parts[0](x)), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("blocks", [1, 3, "layers"])
def test_steps_that_make_several_tensors_are_no_places(blocks: Any) -> None:
    model = models.shufflenet_v2_x0_5(num_classes=5)
    x = torch.randn(3, 3, 48, 48)
    net = convert(model, 5, x, blocks=blocks)
    count = len(net.local_layers)
    assert count > 5 if blocks == "layers" else count == blocks
    losses = net.local_step(x, torch.tensor([0, 1, 2]), LocalSGD(net.parameters(), lr=0.1))
    assert losses.shape == (count,)
    assert bool(losses.isfinite().all())
