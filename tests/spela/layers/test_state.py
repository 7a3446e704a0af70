"""What a layer keeps beside its weights: tables under averaging and loading, and a start from nothing."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from spela import SpelaConv2d, SpelaLinear, SpelaSequential, class_grouping
from spela.baselines import MonoForwardLayer, PepitaSequential
from spela.baselines.hidden import HiddenLayer
from spela.layers import with_binary_weight
from spela.vectors import decode_groups, encode_groups

IMAGES = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def _conv(seed: int = 0, **settings: Any) -> SpelaConv2d:
    settings = {"symmetric_dim": 16, "generator": torch.Generator().manual_seed(seed)} | settings
    return SpelaConv2d(1, 8, 3, 10, (3, 3), **settings).eval()


@pytest.mark.parametrize("decay", [None, 0.9, 0.999, 0.99999])
def test_averages_of_equal_networks_are_the_network(decay: float | None) -> None:
    net = SpelaSequential(_conv()).eval()
    average = None if decay is None else get_ema_multi_avg_fn(decay)  # None: equal weights (SWA)
    mean = AveragedModel(net, multi_avg_fn=average, use_buffers=True).eval()
    for _ in range(200):
        mean.update_parameters(net)
    assert torch.equal(mean.module[0].grouping, net[0].grouping)
    torch.testing.assert_close(mean.module[0].vectors, net[0].vectors, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mean(IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)


def _into_values(own: Tensor, new: Tensor, decay: float) -> Tensor:
    return own.copy_(own * decay + new.detach() * (1.0 - decay))  # as timm's ModelEmaV2


def _new_values(own: Tensor, new: Tensor, decay: float) -> Tensor:
    return decay * own + (1.0 - decay) * new


def _new_values_of_the_dtype(own: Tensor, new: Tensor, decay: float) -> Tensor:
    return (decay * own + (1.0 - decay) * new).to(own.dtype)


@pytest.mark.parametrize("average", [_into_values, _new_values, _new_values_of_the_dtype])
@pytest.mark.parametrize("decay", [0.9, 0.9995])
def test_averages_over_the_state_dict_keep_the_groups(
    average: Callable[[Tensor, Tensor, float], Tensor], decay: float
) -> None:
    net, mean = _conv(), _conv(seed=1)
    mean.load_state_dict(net.state_dict())
    state = mean.state_dict()
    with torch.no_grad():
        for _ in range(500):
            state = {k: average(v, net.state_dict()[k], decay) for k, v in state.items()}
    mean.load_state_dict(state)
    assert torch.equal(mean.grouping, net.grouping)


def test_codes_hold_any_groups_and_survive_long_averages() -> None:
    groups = torch.tensor([[0, 1, 9, 999, 9_999]])
    codes = encode_groups(groups)
    assert torch.equal(decode_groups(codes), groups)
    mean = codes.clone()
    for _ in range(2_000):
        mean.copy_(mean * 0.9999 + codes * (1 - 0.9999))
    assert torch.equal(decode_groups(mean), groups)


def test_sixteen_bits_and_files_keep_the_groups(tmp_path: Any) -> None:
    layer = _conv()
    assert torch.equal(copy.deepcopy(layer).half().grouping, layer.grouping)
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    for state in (
        load_file(tmp_path / "layer.safetensors"),
        torch.load(tmp_path / "layer.pt", weights_only=True),
    ):
        other = _conv(seed=1)
        assert not torch.equal(other.grouping, layer.grouping)
        other.load_state_dict(state)
        assert torch.equal(other.grouping, layer.grouping)
    assert torch.equal(pickle.loads(pickle.dumps(layer)).grouping, layer.grouping)


def test_states_with_plain_groups_are_read() -> None:
    net = SpelaSequential(_conv(), nn.Flatten(), SpelaLinear(72, 9, 10))
    state = net.state_dict()
    state["0.grouping"] = decode_groups(state.pop("0.group_codes"))  # as they were held before
    other = SpelaSequential(_conv(seed=1), nn.Flatten(), SpelaLinear(72, 9, 10))
    other.load_state_dict(state)
    assert torch.equal(other[0].grouping, net[0].grouping)
    assert "0.grouping" in state
    torch.testing.assert_close(other.eval()(IMAGES), net.eval()(IMAGES))


@pytest.mark.parametrize("group", [-1, 9, 2**20])
def test_groups_that_the_layer_has_not_are_refused(group: int) -> None:
    layer = _conv()  # at most 9 groups
    before, state = layer.grouping, layer.state_dict()
    state["group_codes"] = encode_groups(torch.full((8, 10), group))
    with pytest.raises(RuntimeError, match=r"group_codes has groups outside the layer's 0\.\.8"):
        layer.load_state_dict(state)
    assert torch.equal(layer.grouping, before)


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_an_average_of_different_tables_is_no_table(share: float) -> None:
    one, other = _conv(seed=1), _conv(seed=2)
    mixed = {
        name: (value * share + other.state_dict()[name] * (1 - share)).to(value.dtype)
        for name, value in one.state_dict().items()
    }
    with pytest.raises(RuntimeError, match="group_codes is no table of groups: an average of"):
        _conv().load_state_dict(mixed)
    raw = one.state_dict() | {"group_codes": one.grouping}  # not in the middle of their intervals
    with pytest.raises(RuntimeError, match="group_codes is no table of groups"):
        _conv().load_state_dict(raw)


_ROWS = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
_GROUPS = torch.tensor([[0, 1, 0], [2, 1, 0]])
BUILT: dict[str, Callable[..., nn.Module]] = {
    "linear": lambda **k: SpelaLinear(6, 16, 3, **k),
    "linear, prelu, uniform bias": lambda **k: SpelaLinear(
        6, 16, 3, activation="prelu", negative_slope=0.1, bias_init="uniform", **k
    ),
    "linear, normal": lambda **k: SpelaLinear(6, 16, 20, init="kaiming_normal", bias=False, **k),
    "linear, gaussian": lambda **k: SpelaLinear(6, 16, 3, vectors="gaussian", **k),
    "linear, own vectors": lambda **k: SpelaLinear(6, 3, 2, vectors=_ROWS, **k),
    "linear, float64": lambda **k: SpelaLinear(6, 16, 3, dtype=torch.float64, **k),
    "convolution": lambda **k: SpelaConv2d(1, 6, 3, 5, (3, 3), symmetric_dim=7, **k),
    "convolution, own groups": lambda **k: SpelaConv2d(
        1, 2, 3, 3, 3, symmetric_dim=7, projection_std=0.1, batch_norm=False, vectors="uniform",
        grouping=_GROUPS, **k,
    ),
    "hidden": lambda **k: HiddenLayer(6, 16, gain=2.4, **k),
    "mono-forward": lambda **k: MonoForwardLayer(6, 16, 3, **k),
}  # fmt: skip


@pytest.mark.parametrize("name", BUILT)
def test_without_memory_and_reset_a_layer_starts_as_one_built_from_the_seed(name: str) -> None:
    torch.manual_seed(7)
    expected = BUILT[name]().state_dict()
    with_generator = BUILT[name](generator=torch.Generator().manual_seed(7)).state_dict()
    before = torch.random.get_rng_state()
    with torch.device("meta"):
        layer = BUILT[name]()
    assert all(value.is_meta for value in layer.state_dict().values())
    assert torch.equal(torch.random.get_rng_state(), before)
    layer.to_empty(device="cpu")
    for value in layer.state_dict().values():  # what memory may hold
        value.fill_(-7)
    torch.manual_seed(7)
    layer.reset_parameters()
    for key, value in layer.state_dict().items():
        assert torch.equal(value, expected[key]), key
        if name not in ("hidden", "mono-forward"):  # they draw twice from torch's default generator
            assert torch.equal(value, with_generator[key]), key


def test_reset_starts_a_trained_layer_anew() -> None:
    torch.manual_seed(3)
    expected = {k: v.clone() for k, v in _conv(generator=None).state_dict().items()}
    layer = _conv(seed=1).train()
    layer(IMAGES)  # moves the running statistics
    torch.manual_seed(3)
    layer.reset_parameters()
    for key, value in layer.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_reset_of_a_network_as_deferred_initialisation_does_it() -> None:
    def build() -> nn.Module:
        first = SpelaConv2d(1, 4, 3, 5, 3, symmetric_dim=8)
        return SpelaSequential(first, nn.Flatten(), SpelaLinear(36, 9, 5), nn.Dropout(0.1))

    with torch.device("meta"):
        net = build()
    net.to_empty(device="cpu")
    torch.manual_seed(0)
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    groups = net[0].grouping
    for row in groups:
        assert row.unique().tolist() == list(range(int(row.max()) + 1))
    lengths = net[0].vectors.norm(dim=2)
    torch.testing.assert_close(lengths.gather(1, groups), torch.ones(4, 5))
    torch.testing.assert_close(net[2].vectors.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(net[0].norm.running_var, torch.ones(4))


def test_reset_reaches_the_parameter_behind_a_parametrization() -> None:
    torch.manual_seed(5)
    expected = SpelaLinear(6, 16, 3)
    layer = with_binary_weight(SpelaLinear(6, 16, 3))
    torch.manual_seed(5)
    layer.reset_parameters()
    assert torch.equal(layer.parametrizations.weight.original, expected.weight)
    normed = nn.utils.parametrizations.weight_norm(SpelaLinear(6, 16, 3))
    torch.manual_seed(5)
    normed.reset_parameters()
    torch.testing.assert_close(normed.weight, expected.weight)
    pruned = prune.l1_unstructured(SpelaLinear(6, 16, 3), "weight", 3)
    with pytest.raises(ValueError, match="the weight of this SpelaLinear is computed by a hook"):
        pruned.reset_parameters()


def test_pepitas_feedback_is_drawn_anew() -> None:
    torch.manual_seed(2)
    layers = nn.Linear(6, 8), nn.Linear(8, 3)
    torch.manual_seed(4)
    expected = PepitaSequential(*layers).feedback.clone()
    with torch.device("meta"):
        net = PepitaSequential(nn.Linear(6, 8), nn.Linear(8, 3))
    net.to_empty(device="cpu")
    torch.manual_seed(4)
    net.reset_parameters()
    assert torch.equal(net.feedback, expected)


def test_a_shared_grouping_and_copies_are_ones_own() -> None:
    first = _conv()
    second = _conv(seed=1, grouping=first.grouping)
    assert torch.equal(first.grouping, second.grouping)
    second.grouping = class_grouping(8, 10, 3)
    assert not torch.equal(first.grouping, second.grouping)
    clone = copy.deepcopy(second)
    torch.manual_seed(0)
    clone.reset_parameters()
    assert torch.equal(clone.grouping, first.grouping)  # the one it was built with
    assert int(second.grouping.max()) == 2
