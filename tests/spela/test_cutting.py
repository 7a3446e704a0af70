"""Networks cut into parts: the same outputs and weights, the best places, and what cannot be cut."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

from spela import SpelaBlock, convert
from spela.bodies import build_body
from spela.cutting import cut_network, split_evenly
from spela.optim import LocalAdam, LocalSGD


def _cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16 * 6 * 6, 10),
    )


def _resnet(num_classes: int = 10) -> nn.Module:
    return models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=num_classes)


NETWORKS = {
    "sequential": (_cnn, 16),
    "resnet": (lambda: _resnet(), 32),
    "mobilenet": (lambda: models.mobilenet_v3_small(num_classes=10), 32),
    "swin": (
        lambda: models.SwinTransformer([2, 2], 16, [1, 1], [2, 2], [4, 4], num_classes=10),
        32,
    ),
    "vit": (lambda: models.VisionTransformer(32, 8, 4, 2, 32, 64, num_classes=10), 32),
}


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
    parts = cut_network(_cnn(), torch.randn(2, 3, 16, 16), "layers")
    kinds = [[type(m).__name__ for m in part.modules() if not m._modules] for part in parts]
    assert kinds == [
        ["Conv2d", "BatchNorm2d", "ReLU"],
        ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"],
        ["Conv2d", "ReLU", "Flatten", "Dropout"],
        ["Linear"],
    ]


def _stored(part: nn.Module, x: Tensor) -> int:
    """Bytes that torch keeps for a part's gradient, counted here once more."""
    own = {t.untyped_storage()._cdata for t in (*part.parameters(), *part.buffers())}
    kept = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        part(x)
    return sum(kept.values())


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
        sizes.append(_stored(part, y))
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


def test_blocks_learn_like_the_gradient_of_their_part_alone() -> None:
    """Two blocks against two parts with a loss each, by autograd."""
    torch.manual_seed(0)
    x, target = torch.randn(8, 3, 16, 16), torch.arange(8)
    net = convert(_cnn(), 10, x, blocks=2, readout=32, projection=12)
    net.eval()  # without dropout
    first, second = net.local_layers
    optimizer = LocalSGD(net.parameters(), lr=0.1)
    others = [copy.deepcopy(block) for block in net.local_layers]
    losses = net.local_step(x, target, optimizer)
    y, found = x, []
    for other in others:
        y = other.body(y.detach())
        rows = (
            y
            if other.projection is None
            else nn.functional.adaptive_avg_pool2d(y, (2, 2)).flatten(1) @ other.projection[0]
        )
        cosines = nn.functional.normalize(rows, dim=1) @ other.vectors.T
        loss = nn.functional.cross_entropy(20 * cosines, target)
        loss.backward()
        found.append(loss.detach())
        with torch.no_grad():
            for parameter in other.parameters():
                parameter -= 0.1 * parameter.grad
    torch.testing.assert_close(losses, torch.stack(found))
    for block, other in zip((first, second), others, strict=True):
        for ours, theirs in zip(block.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet", "vit", "sequential"])
@pytest.mark.parametrize("blocks", [1, 2, "layers"])
def test_converted_networks_keep_their_answers_and_learn(name: str, blocks: Any) -> None:
    torch.manual_seed(0)
    make, size = NETWORKS[name]
    model, x = make().eval(), torch.randn(10, 3, size, size)
    net = convert(model, 10, x[:2], blocks=blocks)
    assert all(isinstance(layer, SpelaBlock) for layer in net.local_layers)
    assert not net.training
    if name != "vit":  # whose last layer starts with zeros
        assert torch.equal(net.predict(x), model(x).argmax(dim=1))
    target = torch.arange(10)
    net.train()
    optimizer = LocalAdam(net.parameters(), lr=1e-3)
    losses = [float(net.local_step(x, target, optimizer)[-1]) for _ in range(5)]
    assert losses[-1] < losses[0]


def test_pretrained_weights_of_other_classes_go_through_a_projection() -> None:
    model, x = _resnet(20), torch.randn(2, 3, 32, 32)
    net = convert(model, 10, x, cut=["layer2"], similarity=0.1, dropout=0.2, checkpoint=True)
    assert [block.projection.shape for block in net.local_layers] == [(1, 128, 128), (1, 20, 128)]
    assert net.training
    assert net(x).shape == (2, 10)
    with pytest.raises(TypeError, match="readout: settings of blocks"):
        convert(_cnn(), 10, x, readout=3)
    with pytest.raises(TypeError, match="cut it into `blocks`"):
        convert(model, 10, x)  # type: ignore[arg-type]


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


def test_what_tracing_would_lose_is_refused() -> None:
    x = torch.randn(4, 6)
    hooked, own = (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))
    hooked.register_forward_hook(lambda module, args, y: -y)
    own.forward = lambda x: -nn.Sequential.forward(own, x)  # type: ignore[method-assign]
    for model in (hooked, own):
        with pytest.raises(ValueError, match="do not give its output"):
            convert(model, 3, x, blocks=2)


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


def test_checkpointing_keeps_the_inputs_of_a_blocks_own_parts() -> None:
    x = torch.randn(64, 16)
    model = nn.Sequential(*(m for _ in range(8) for m in (nn.Linear(16, 16), nn.Tanh(), nn.Tanh())))
    nets = [convert(model, 16, x, blocks=1, checkpoint=flag) for flag in (False, True)]
    assert torch.equal(nets[0].local_layers[0](x), nets[1].local_layers[0](x))
    plain, kept = (_stored(net.local_layers[0], x) for net in nets)
    assert kept < plain / 2
    assert len(nets[1].local_layers[0].body) == 8  # each runs again alone


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": 2, "conv_scale": 30.0}, "`conv_scale` is of SpelaConv2d"),
        ({"cut": "0", "symmetric_dim": 8}, "`symmetric_dim` is of SpelaConv2d"),
        ({"blocks": 2, "sample_input": [[1.0]]}, "`sample_input` must be a tensor"),
        ({"blocks": 2, "sample_input": torch.ones(2, 5)}, r"does not take an input \(2, 5\)"),
    ],
)
def test_what_blocks_do_not_take(settings: dict[str, Any], message: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    with pytest.raises((ValueError, TypeError), match=message):
        convert(model, 3, **{"sample_input": torch.ones(2, 6), **settings})


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


def test_a_backbone_stays_as_it_is_where_a_conversion_is_refused() -> None:
    backbone = nn.Sequential(nn.Linear(4, 8), nn.Dropout())
    for model in (nn.Sequential(nn.ReLU()), nn.Sequential(nn.Linear(9, 3))):
        with pytest.raises(ValueError):
            convert(model, 3, torch.randn(5, 4), frozen=backbone)
        assert backbone[1].training
        assert all(parameter.requires_grad for parameter in backbone.parameters())
    net = convert(nn.Sequential(nn.Linear(8, 3)), 3, torch.randn(5, 4), frozen=backbone)
    assert net[0].module is backbone
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_module_that_runs_twice_in_a_block_gets_both_gradients(checkpoint: bool) -> None:
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), layer, nn.Linear(6, 3))
    x, target = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    net = convert(model, 3, x, blocks=1, checkpoint=checkpoint)
    loss = net.local_losses(x, target).sum()
    block = net.local_layers[0]
    (found,) = torch.autograd.grad(loss, [next(block.body.parameters())])
    y = nn.functional.normalize(model(x), dim=1) @ nn.functional.normalize(block.vectors, dim=1).T
    own = nn.functional.cross_entropy(20 * y, target)
    torch.testing.assert_close(found, torch.autograd.grad(own, [layer.weight])[0])
