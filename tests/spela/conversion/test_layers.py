"""spela.convert: the same outputs before training, local learning after, and errors that name a module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import spela
from spela import Frozen, RowNorm, SpelaConv2d, SpelaLinear, SpelaSequential, optim

G = torch.Generator().manual_seed(5)
ROWS = torch.randn(9, 12, generator=G)
IMAGES = torch.randn(6, 2, 16, 16, generator=G)


def _linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 20),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Sequential(nn.Linear(20, 16, bias=False), nn.LeakyReLU(0.2)),
        nn.Linear(16, 14),
        nn.Tanh(),
        nn.Linear(14, 13),
        nn.GELU(),
        nn.Linear(13, 12),
        nn.ELU(),
        nn.Linear(12, 11),
        nn.PReLU(),
        nn.Linear(11, 5),
    ).eval()


def _moved(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    """A batch norm that has seen data, with factors of both signs."""
    for name, value in {**norm.state_dict()}.items():
        if value.dim():
            value.copy_(torch.rand_like(value) + 0.3)
        if name == "weight":
            value[::2] *= -1
    return norm


def _convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        _moved(nn.BatchNorm2d(6)),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=(2, 1), padding=1, groups=2, bias=False),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.LeakyReLU(0.1),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()


def _activations(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    outputs = []
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            continue
        x = module(x)
        outputs.append(x.clone())
    return outputs


def test_a_linear_stack_gives_the_same_activations_and_answers() -> None:
    model = _linear()
    net = spela.convert(model, 5, ROWS)
    expected = _activations(model, ROWS)
    x = ROWS
    found = []
    for module in net:
        x = module(x)
        found.append(x)
    assert [m.activation for m in net.local_layers] == [
        "relu", "leaky_relu", "tanh", "gelu", "elu", "prelu", "identity",
    ]  # fmt: skip
    # After each activation, the dropout and the last layer.
    for mine, index in zip(found, [1, 2, 4, 6, 8, 10, 12, 13], strict=True):
        torch.testing.assert_close(mine, expected[index], rtol=1e-5, atol=1e-6)
    assert torch.equal(net.predict(ROWS), model(ROWS).argmax(dim=1))


def test_a_convolution_stack_gives_the_same_outputs() -> None:
    model = _convolutional()
    net = spela.convert(model, 5, IMAGES)
    kinds = [type(m).__name__ for m in net]
    assert kinds == ["SpelaConv2d", "SpelaConv2d", "ReLU", "SpelaConv2d", "Flatten", "SpelaLinear"]
    assert [m.pool for m in net if isinstance(m, SpelaConv2d)] == ["max", "max", "avg"]
    x, expected = IMAGES, _activations(model, IMAGES)
    for module, index in zip(net, [3, 5, 6, 9, 10, 11], strict=True):
        x = module(x)
        torch.testing.assert_close(x, expected[index], rtol=1e-5, atol=1e-6)
    assert torch.equal(net.predict(IMAGES), model(IMAGES).argmax(dim=1))


def test_what_spela_layers_have_no_room_for_stays_between_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same"),
        nn.BatchNorm2d(4, affine=False),
        nn.SiLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        RowNorm("rms"),
        nn.Linear(16, 8),
        _moved(nn.BatchNorm1d(8)),
        nn.GELU(approximate="tanh"),
        nn.Linear(8, 7),
        nn.ReLU6(inplace=True),
        nn.Linear(7, 3),
        nn.Identity(),
    ).eval()
    net = spela.convert(model, 3, IMAGES)
    assert torch.equal(net.predict(IMAGES), model(IMAGES).argmax(dim=1))
    x = IMAGES
    for module in net:
        x = module(x)
    torch.testing.assert_close(x, model(IMAGES), rtol=1e-5, atol=1e-6)
    trained = {id(p) for layer in net.local_layers for p in layer.parameters()}
    assert all(p.requires_grad == (id(p) in trained) for p in net.parameters())
    # In-place modules would overwrite what a layer's gradient needs.
    net.train().local_losses(IMAGES, torch.arange(6) % 3).sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_the_original_is_neither_changed_nor_shared() -> None:
    model = _convolutional().train()
    before = copy.deepcopy(model.state_dict())
    net = spela.convert(model, 5, IMAGES)
    assert net.training
    assert model.training
    assert model[2].inplace
    optimizer = optim.LocalAdam(net.parameters(), lr=0.1)
    net.local_step(IMAGES, torch.arange(6) % 5, optimizer)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(net[0].weight, model[0].weight)


def test_a_converted_network_goes_on_learning_where_backprop_stopped() -> None:
    from spela.data import load_dataset

    data = load_dataset("digits")
    x, y = data.train_x, data.train_y
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    backprop = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(30):
        backprop.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        backprop.step()
    net = spela.convert(model, 10, x[:2])

    def right(scores: Tensor) -> float:
        return (scores.argmax(dim=1) == data.test_y).double().mean().item()

    start = right(net(data.test_x))
    assert start == right(model(data.test_x))
    local = optim.LocalAdam(net.parameters(), lr=3e-3)
    for _ in range(60):
        net.local_step(x, y, local)
    assert right(net(data.test_x)) > max(start, 0.9)


def test_dtype_mode_and_frozen_layers_carry_over() -> None:
    model = _linear().double()
    model[0].requires_grad_(False)
    net = spela.convert(model, 5, ROWS.double())
    assert not net.training
    assert all(v.dtype == torch.float64 for v in net.state_dict().values())
    assert not net[0].weight.requires_grad
    assert net[2].weight.requires_grad


def test_a_backbone_in_front_stays_as_it_is() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(12, 10), nn.BatchNorm1d(10), nn.Dropout(0.5))
    head = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 5))
    net = spela.convert(head, 5, ROWS, frozen=backbone).train()
    assert isinstance(net[0], Frozen)
    before = copy.deepcopy(net[0].state_dict())
    losses = net.local_losses(ROWS, torch.arange(9) % 5)
    losses.sum().backward()
    optimizer = optim.LocalAdam(net.parameters(), lr=0.1, weight_decay=0.1)
    net.local_step(ROWS, torch.arange(9) % 5, optimizer)
    assert net.training
    assert not backbone[2].training
    for name, value in net[0].state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())
    # The same without convert.
    plain = SpelaSequential(Frozen(backbone), SpelaLinear(10, 8, 5)).train()
    assert torch.equal(plain[0](ROWS), net[0](ROWS))
    with pytest.raises(TypeError, match="`module` must be an nn"):
        Frozen("resnet")


class _OwnLinear(nn.Linear):
    pass


_TIED = nn.Linear(12, 12)
REFUSED = {
    "no counterpart": ([nn.Linear(12, 8), nn.Sequential(nn.ReLU(), nn.LayerNorm(8))],
                       r"module '1.1' \(LayerNorm\) has no SPELA counterpart; accepted: Linear"),
    "first of two": ([nn.LSTM(12, 3), nn.LayerNorm(8)], r"module '0' \(LSTM\)"),
    "subclass": ([_OwnLinear(12, 8)], r"module '0' \(_OwnLinear\) has no"),
    "softmax": ([nn.Linear(12, 5), nn.Softmax(1)], r"module '1' \(Softmax\) has no"),
    "after the last": ([nn.Linear(12, 5), nn.Dropout()], r"'1' \(Dropout\) comes after the last"),
    "nothing learns": ([nn.Flatten(), nn.ReLU()], "nothing in it could learn"),
    "wrong input": ([nn.Linear(12, 8), nn.Linear(9, 5)], r"'1' \(Linear\) does not take.*\(9, 8\)"),
    "tied": ([_TIED, nn.ReLU(), _TIED], r"'2' \(Linear\) shares a weight with module '0'"),
    "none": ([nn.Linear(12, 8), None], "module '1' is None"),
    "one output": ([nn.Linear(12, 1)], r"'0' \(Linear\) has one output"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_errors_name_the_module(case: str) -> None:
    modules, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        spela.convert(nn.Sequential(*modules), 5, ROWS)


def test_errors_of_images_and_arguments() -> None:
    reflecting = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match=r"'0' \(Conv2d\) pads by 'reflect'"):
        spela.convert(reflecting, 5, IMAGES)
    with pytest.raises(ValueError, match=r"'0' \(Linear\) must get rows \(B, I\)"):
        spela.convert(nn.Sequential(nn.Linear(16, 4)), 5, IMAGES)
    two = nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2, return_indices=True))
    with pytest.raises(ValueError, match=r"'1' \(MaxPool2d\) returns more than a tensor"):
        spela.convert(two, 5, IMAGES)
    with pytest.raises(TypeError, match=r"nn.Sequential, got Linear"):
        spela.convert(nn.Linear(12, 5), 5, ROWS)
    with pytest.raises(ValueError, match="`num_classes` must be at least 2, got 1"):
        spela.convert(_linear(), 1, ROWS)


class _Residual(nn.Sequential):
    """As many public blocks: a Sequential by type, a sum by behaviour."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class _Reversed(nn.Sequential):
    def __iter__(self) -> Iterator[nn.Module]:
        return reversed(list(self._modules.values()))  # type: ignore[arg-type, return-value]


class _Block(nn.Sequential):
    """What only names its modules computes what nn.Sequential does."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, outputs), nn.ReLU())


def _square() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12))


def _negated(name: str, at: int | None) -> nn.Sequential:
    model = _square()
    module = model if at is None else model[at]
    hooks = {
        "register_forward_pre_hook": lambda m, args: (-args[0],),
        "register_forward_hook": lambda m, args, y: -y,
        "register_full_backward_hook": lambda m, before, after: None,
        "register_full_backward_pre_hook": lambda m, after: None,
    }
    getattr(module, name)(hooks[name])
    return model


def _own_forward() -> nn.Sequential:
    model = _square()
    model.forward = lambda x: -x  # type: ignore[method-assign]
    return model


def _own_layer_forward(at: int) -> nn.Sequential:
    model = _square()
    model[at].forward = lambda x: x.square()  # type: ignore[method-assign]
    return model


def _changed(change: Callable[[nn.Linear], object]) -> nn.Sequential:
    model = _square()
    change(model[0])  # type: ignore[arg-type]
    return model


def _computed(layer: nn.Linear) -> None:
    weight = layer.weight
    del layer.weight
    layer.weight = 2 * weight.detach()  # type: ignore[assignment]


DEPARTING = {
    "root forward": (lambda: _Residual(*_square()),
                     r"`model` \(_Residual\) has a `forward` of its own"),
    "nested forward": (lambda: nn.Sequential(_Residual(*_square()), nn.Linear(12, 5)),
                       r"module '0' \(_Residual\) has a `forward`"),
    "iteration": (lambda: _Reversed(*_square()), r"`model` \(_Reversed\) has a `__iter__`"),
    "forward on an instance": (_own_forward, r"`model` \(Sequential\) has a `forward`"),
    "forward on a layer": (lambda: _own_layer_forward(0), r"'0' \(Linear\) has a `forward`"),
    "forward on an activation": (lambda: _own_layer_forward(1), r"'1' \(Tanh\) has a `forward`"),
    "a SPELA network": (lambda: SpelaSequential(SpelaLinear(12, 12, 5)), "SpelaSequential.*forward"),
    "old weight norm": (lambda: _changed(nn.utils.weight_norm), r"'0' \(Linear\).*WeightNorm"),
    "old spectral norm": (lambda: _changed(nn.utils.spectral_norm), r"'0' \(Linear\).*SpectralNorm"),
    "weight norm": (lambda: _changed(nn.utils.parametrizations.weight_norm),
                    r"module '0' \(ParametrizedLinear\) computes its weight"),
    "spectral norm": (lambda: _changed(nn.utils.parametrizations.spectral_norm), "computes its weight"),
    "pruned": (lambda: _changed(lambda m: prune.l1_unstructured(m, "weight", 3)),
               r"'0' \(Linear\).*L1Unstructured"),
    "computed": (lambda: _changed(_computed), r"'0' \(Linear\) has a weight that is no parameter"),
    "not yet made": (lambda: nn.Sequential(nn.LazyLinear(5)), r"'0' \(LazyLinear\) has no"),
    **{f"{name} on {at}": (partial(_negated, name, at),
                           (f"'{at}'" if at is not None else "`model`") + r" \(.*\) has a .*hook")
       for name in ("register_forward_pre_hook", "register_forward_hook",
                    "register_full_backward_hook", "register_full_backward_pre_hook")
       for at in (None, 0, 1)},
}  # fmt: skip


@pytest.mark.parametrize("case", DEPARTING)
def test_what_does_not_do_as_its_type_says_is_refused_by_name(case: str) -> None:
    make, message = DEPARTING[case]
    with pytest.raises(ValueError, match=message) as error:
        spela.convert(make(), 12, ROWS)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_what_was_made_plain_again_is_converted() -> None:
    model = _square().eval()
    nn.utils.weight_norm(model[0])
    nn.utils.remove_weight_norm(model[0])
    prune.l1_unstructured(model[2], "weight", 30)
    prune.remove(model[2], "weight")
    net = spela.convert(model, 12, ROWS)
    assert torch.equal(net.predict(ROWS), model(ROWS).argmax(dim=1))
    torch.testing.assert_close(net[1](net[0](ROWS)), model(ROWS))


def test_a_subclass_that_only_names_its_modules_is_an_nn_sequential() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(_Block(12, 9), _Block(9, 8), nn.Linear(8, 5)).eval()
    net = spela.convert(model, 5, ROWS)
    assert torch.equal(net.predict(ROWS), model(ROWS).argmax(dim=1))
    assert [layer.activation for layer in net] == ["relu", "relu", "identity"]


def test_a_frozen_module_keeps_its_own_behaviour() -> None:
    inner = _square()
    nn.utils.parametrizations.weight_norm(inner[0])
    inner[1].register_forward_hook(lambda m, args, y: -y)
    model = nn.Sequential(Frozen(_Residual(*inner)), nn.Linear(12, 5)).eval()
    net = spela.convert(model, 5, ROWS)
    assert torch.equal(net.predict(ROWS), model(ROWS).argmax(dim=1))
    nn.utils.weight_norm(inner[2])  # torch cannot copy its computed tensor once it has run
    inner(ROWS)
    with pytest.raises(ValueError, match=r"module '0' \(Frozen\) cannot be copied"):
        spela.convert(nn.Sequential(Frozen(inner), nn.Linear(12, 5)), 5, ROWS)


def test_every_module_keeps_its_own_mode_and_what_learns() -> None:
    model = _convolutional().train()
    model[1].eval()  # fine-tuning on fixed statistics
    model[-1].eval()
    model[1].weight.requires_grad_(False)
    net = spela.convert(model, 5, IMAGES)
    assert net.training
    assert net[0].training
    assert not net[0].norm.training
    assert not net[-1].training
    assert not net[0].norm.weight.requires_grad
    before = net[0].norm.running_mean.clone()
    net.local_step(IMAGES, torch.arange(6) % 5, optim.LocalSGD(net.parameters(), lr=0.1))
    assert torch.equal(net[0].norm.running_mean, before)
    slopes = nn.Sequential(nn.Linear(12, 6), nn.PReLU(), nn.Linear(6, 5))
    slopes[1].requires_grad_(False)
    converted = spela.convert(slopes, 5, ROWS)
    assert not converted[0].slope.requires_grad
    assert converted[0].weight.requires_grad


def test_what_the_network_returns_are_cosines_to_the_class_vectors() -> None:
    model = _linear()
    net = spela.convert(model, np.int64(5), ROWS)
    logits = model(ROWS)
    centred = logits - logits.mean(dim=1, keepdim=True)
    share = centred / logits.norm(dim=1, keepdim=True) * (5 / 4) ** 0.5
    torch.testing.assert_close(net(ROWS), share, rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match=r"`num_classes` must be an integer, got 5\.0"):
        spela.convert(model, 5.0, ROWS)  # type: ignore[arg-type]


def test_a_network_without_memory_is_converted() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, 3))
        x = torch.empty(2, 4)
    for more in ({}, {"blocks": 2}):
        net = spela.convert(model, 3, x, **more)
        assert all(parameter.is_meta for parameter in net.parameters())


def test_weights_of_zeros_are_kept_where_a_bias_is_a_direction_or_nothing_learns() -> None:
    x = torch.rand(6, 12)
    for layer, frozen in ((0, False), (2, False), (0, True), (2, True)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
        nn.init.zeros_(model[layer].weight)
        if frozen:
            nn.init.zeros_(model[layer].bias)
            model[layer].requires_grad_(False)
        net = spela.convert(model, 3, x).eval()
        h = x
        for module in net:
            h = module(h)
        torch.testing.assert_close(h, model(x))
    nn.init.zeros_(model[2].weight.requires_grad_())
    assert spela.convert(model, 3, x)[-1].weight.any()  # weights and bias of zeros: drawn anew


def test_what_is_converted_under_inference_mode_can_learn() -> None:
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False), nn.Tanh(), nn.Linear(6, 3)
    )
    x, target = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    with torch.inference_mode():
        net = spela.convert(model, 3, x)
    before = net[1].running_mean.clone()
    net.train().local_step(x, target, optim.LocalSGD(net.parameters(), lr=0.1))
    assert not torch.equal(net[1].running_mean, before)
