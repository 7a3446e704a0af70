"""save_pretrained and from_pretrained: the same network comes back, or nothing is written or read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune

from spela import RowNorm, SpelaBlock, SpelaConv2d, SpelaLinear, SpelaSequential, convert
from spela.data import load_dataset
from spela.experiments import make_config, run
from spela.files import atomic
from spela.optim import LocalAdam, LocalSGD
from spela.pretrained.card import network_card
from spela.streaming import StreamingClassifier
from tests.spela.pretrained.networks import NETWORKS

NAMES = ["README.md", "config.json", "model.safetensors"]


def _small() -> SpelaSequential:
    return SpelaSequential(SpelaLinear(4, 5, 3), RowNorm(), SpelaLinear(5, 4, 3))


def _held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_network_comes_back(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = NETWORKS[name]()
    y = torch.arange(len(x)) % 10
    for _ in range(3):  # its statistics and weights are those of a net that learnt
        net.local_step(x, y, torch.optim.Adam(net.parameters(), 1e-2))
    net.save_pretrained(tmp_path)
    assert sorted(_held(tmp_path)) == NAMES
    state = torch.get_rng_state()
    loaded = SpelaSequential.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(loaded) is SpelaSequential
    assert not any(module.training for module in loaded.modules())
    assert repr(loaded) == repr(net)
    assert list(loaded.state_dict()) == list(net.state_dict())
    for key, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
        assert loaded.state_dict()[key].dtype == value.dtype
    for (key, ours), theirs in zip(net.named_parameters(), loaded.parameters(), strict=True):
        assert ours.requires_grad == theirs.requires_grad, key
    for ours, theirs in zip(net.eval().layer_scores(x), loaded.layer_scores(x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_goes_on_learning_alike(name: str, tmp_path: Path) -> None:
    """Settings that only learning sees came along: objectives, scales, dropout, what is frozen."""
    torch.manual_seed(0)
    net, x = NETWORKS[name]()
    net.save_pretrained(tmp_path)
    y, found = torch.arange(len(x)) % 10, []
    for one in (net, SpelaSequential.from_pretrained(tmp_path)):
        one.train()
        torch.manual_seed(1)
        optimizer = LocalAdam(one.parameters(), 1e-2)
        found.append(torch.stack([one.local_step(x, y, optimizer) for _ in range(3)]))
    assert torch.equal(*found)


def test_it_starts_anew_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for name in ("linear", "convolutions", "blocks"):
        net, _ = NETWORKS[name]()
        net.save_pretrained(tmp_path)
        states = []
        for one in (net, SpelaSequential.from_pretrained(tmp_path)):
            torch.manual_seed(1)
            for module in one:
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            states.append(one.state_dict())
        for key, value in states[0].items():
            assert torch.allclose(states[1][key], value, rtol=0, atol=1e-7), key


def test_the_weights_are_an_ordinary_state(tmp_path: Path) -> None:
    net = _small()
    net.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    assert held.keys() == net.state_dict().keys()
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"  # what the Hub's libraries look for
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["modules"]["0"]["arguments"]["objective"] == "log"
    before = _held(tmp_path)
    SpelaSequential.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert _held(tmp_path) == before


def test_a_streams_network_of_fewer_classes(tmp_path: Path) -> None:
    from spela.streaming import StreamingClassifier

    net = SpelaSequential(SpelaLinear(4, 6, 5))
    stream = StreamingClassifier(net, seed=0)
    for label in ("a", "b", "c"):
        stream.observe(torch.randn(1, 4), [label])
    net.save_pretrained(tmp_path)
    x = torch.randn(3, 4)
    assert torch.equal(SpelaSequential.from_pretrained(tmp_path)(x), net(x))
    assert net(x).shape == (3, 3)


def test_a_card_that_is_there_stays_unless_another_is_given(tmp_path: Path) -> None:
    net = _small()
    net.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    text = card.read_text()
    assert text.startswith("---\nlibrary_name:")
    assert "SpelaLinear(in_features=4, out_features=5" in text
    card.write_text("mine")
    net.save_pretrained(tmp_path)
    assert card.read_text() == "mine"
    net.save_pretrained(tmp_path, card="# Given")
    assert card.read_text() == "# Given"


class _Own(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class _OwnLayer(SpelaLinear):
    pass


class _OwnNetwork(SpelaSequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -super().forward(x)


def _pruned() -> SpelaSequential:
    net = _small()
    prune.random_unstructured(net[0], "weight", 0.5)
    return net


def _tied() -> SpelaSequential:
    net = SpelaSequential(SpelaLinear(4, 4, 3), SpelaLinear(4, 4, 3))
    net[1].weight = net[0].weight
    return net


def _repeated() -> SpelaSequential:
    layer = SpelaLinear(4, 4, 3)
    return SpelaSequential(layer, RowNorm(), layer)


def _mixed() -> SpelaSequential:
    net = _small()
    net[0].bias.data = net[0].bias.data.double()
    return net


def _block() -> SpelaSequential:
    body = nn.Sequential(nn.Linear(4, 4), _Own())
    return SpelaSequential(SpelaBlock(body, 3, torch.randn(2, 4)))


def _cut() -> SpelaSequential:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return convert(model, 3, torch.randn(2, 4), blocks=2)


REFUSED = {
    "cut": (_cut, r"module '0.body' \(Part\) .* build the network in code"),
    "own module": (lambda: SpelaSequential(_Own(), SpelaLinear(4, 5, 3)), r"module '0' \(_Own\)"),
    "own layer": (lambda: SpelaSequential(_OwnLayer(4, 5, 3)), r"module '0' \(_OwnLayer\)"),
    "own body": (_block, r"module '0.body.1' \(_Own\) .* build the network in code"),
    "own network": (lambda: _OwnNetwork(SpelaLinear(4, 5, 3)), r"save SpelaSequential\(\*net\)"),
    "pruned": (_pruned, r"module '0' \(SpelaLinear\) has a forward pre-hook"),
    "tied": (_tied, "0.weight and 1.weight are one tensor"),
    "repeated": (_repeated, "0.weight and 2.weight are one tensor"),
    "mixed": (_mixed, r"module '0' \(SpelaLinear\) has tensors of several dtypes"),
    "meta": (lambda: SpelaSequential(SpelaLinear(4, 5, 3, device="meta")), "holds no values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_said_is_refused_before_anything_is_written(
    name: str, tmp_path: Path
) -> None:
    build, message = REFUSED[name]
    _small().save_pretrained(tmp_path / "there")
    before = _held(tmp_path / "there")
    for folder in (tmp_path / "new", tmp_path / "there"):
        with pytest.raises(ValueError, match=message) as found:
            build().save_pretrained(folder)
        assert "\n" not in str(found.value)
    assert not (tmp_path / "new").exists()
    assert _held(tmp_path / "there") == before


def test_a_run_is_not_written_over_nor_read_as_a_network(tmp_path: Path) -> None:
    data = load_dataset("digits").subset(train=40, test=20)
    run(make_config("digits", epochs=1, layers=(8,)), data, tmp_path)
    before = _held(tmp_path)
    with pytest.raises(ValueError, match=r"a run's config.json: .* folder of its own"):
        _small().save_pretrained(tmp_path)
    assert _held(tmp_path) == before
    with pytest.raises(ValueError, match=r"folder of a run: use spela.experiments.load_run"):
        SpelaSequential.from_pretrained(tmp_path)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: Any) -> None:
    _small().save_pretrained(tmp_path)
    before = _held(tmp_path)

    def no_room(file: int) -> None:
        calls.append(file)
        if len(calls) == 2:  # the second of three files
            raise OSError(28, os.strerror(28))

    calls: list[int] = []
    monkeypatch.setattr(atomic.os, "fsync", no_room)
    with pytest.raises(OSError, match=r"cannot write .*: No space left"):
        SpelaSequential(SpelaLinear(7, 5, 3)).save_pretrained(tmp_path, card="other")
    assert _held(tmp_path) == before


def _change(folder: Path, *keys: str, to: Any) -> None:
    """Let an entry of config.json be another one, and the weights vouch for it."""
    from spela.pretrained.folder import _DIGEST, _digest

    config = json.loads((folder / "config.json").read_text())
    inner = config
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", {"format": "pt", _DIGEST: _digest(config)})


CHANGES: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "code": (("modules", "0", "type"), "os.system", "unknown module 'os.system'"),
    "no kind": (("modules", "0", "type"), None, "no sound 'type'"),
    "an argument": (("modules", "0", "arguments", "hook"), "x", "no argument 'hook'"),
    "a device": (("modules", "0", "arguments", "device"), "cpu", "no argument 'device'"),
    "an objective": (("modules", "0", "arguments", "objective"), "y", "unknown objective 'y'"),
    "a size": (("modules", "0", "arguments", "in_features"), 9, r"0.weight is \(\(5, 4\)"),
    "more than memory": (("modules", "0", "arguments", "in_features"), 10**15, "0.weight is"),
    "beyond all": (("modules", "0", "arguments", "in_features"), 10**30, "config.json"),
    "text": (("modules", "0", "arguments", "in_features"), "4", "in_features"),
    "an object": (("modules", "0", "arguments", "scale"), {"a": 1}, "is no setting"),
    "a dtype": (("modules", "0", "dtype"), "int64", "cannot be of dtype 'int64'"),
    "another dtype": (("modules", "0", "dtype"), "float16", "float16"),
    "no modules": (("modules",), 5, "config.json"),
    "one less": (("modules",), {}, "asks for None"),
    "frozen": (("frozen",), ["9.weight"], "config.json"),
    "a format": (("format",), "other", "format is not spela-network-1"),
    "vectors": (("modules", "1"), {"type": "SpelaLinear", "arguments": {}}, "config.json"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_config_that_is_none_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    keys, value, message = CHANGES[name]
    _small().save_pretrained(tmp_path)
    _change(tmp_path, *keys, to=value)
    with pytest.raises(ValueError, match=message) as found:
        SpelaSequential.from_pretrained(tmp_path)
    assert "\n" not in str(found.value)


def test_files_of_two_networks_are_refused(tmp_path: Path) -> None:
    """The shapes fit, the settings do not: the answers would be wrong without a word."""
    for name, activation in (("a", "relu"), ("b", "tanh")):
        SpelaSequential(SpelaLinear(4, 5, 3, activation=activation)).save_pretrained(
            tmp_path / name
        )
    shutil.copy(tmp_path / "b" / "config.json", tmp_path / "a")
    with pytest.raises(ValueError, match=r"another network than model.safetensors"):
        SpelaSequential.from_pretrained(tmp_path / "a")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "no", str(tmp_path / "no"), "digits"):
        with pytest.raises(ValueError, match="is no folder: give one that save_pretrained wrote"):
            SpelaSequential.from_pretrained(path)
    with pytest.raises(ValueError, match=r"config.json is missing: .* no saved network"):
        SpelaSequential.from_pretrained(tmp_path)
    _small().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model.safetensors is missing"):
        SpelaSequential.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(ValueError, match=r"model.safetensors does not say what"):
        SpelaSequential.from_pretrained(tmp_path)
    file = tmp_path / "config.json"
    with pytest.raises(ValueError, match="is a file: give a folder"):
        _small().save_pretrained(file)


def test_any_mode_and_default_of_the_program_around(tmp_path: Path) -> None:
    net = _small()
    net.save_pretrained(tmp_path)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.inference_mode():
            loaded = SpelaSequential.from_pretrained(tmp_path)
    finally:
        torch.set_default_dtype(before)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    optimizer = LocalSGD(loaded.parameters(), 0.1)
    before_step = loaded[0].weight.clone()
    loaded.local_step(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]), optimizer)
    assert not torch.equal(loaded[0].weight, before_step)


def test_a_converted_batch_norm_keeps_its_eps_and_momentum(tmp_path: Path) -> None:
    norm = nn.BatchNorm2d(4, eps=0.5, momentum=None)
    layers = [nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)]
    x = torch.randn(5, 1, 8, 8)
    net = convert(nn.Sequential(*layers).eval(), 3, x)
    net.save_pretrained(tmp_path)
    loaded = SpelaSequential.from_pretrained(tmp_path)
    assert (loaded[0].norm.eps, loaded[0].norm.momentum) == (0.5, None)
    assert torch.equal(loaded.eval()(x), net.eval()(x))
    _change(tmp_path, "modules", "0", "norm", to={"eps": "0.5"})
    with pytest.raises(ValueError, match="no sound 'eps'"):
        SpelaSequential.from_pretrained(tmp_path)


def test_what_a_hook_or_a_stream_of_one_class_would_lose_is_not_saved(tmp_path: Path) -> None:
    net = SpelaSequential(nn.Linear(6, 6), SpelaLinear(6, 8, 3))
    handle = net[0].register_forward_hook(lambda module, args, y: -y)
    with pytest.raises(ValueError, match="has a forward hook"):
        net.save_pretrained(tmp_path / "hook")
    handle.remove()
    net.register_forward_pre_hook(lambda module, args: args)
    with pytest.raises(ValueError, match="has a forward pre-hook"):
        net.save_pretrained(tmp_path / "hook")
    stream = StreamingClassifier(SpelaSequential(SpelaLinear(6, 8, 3)))
    stream.observe(torch.randn(6), "a")
    with pytest.raises(ValueError, match="one class so far"):
        stream.net.save_pretrained(tmp_path / "hook")
    assert not (tmp_path / "hook").exists()


@pytest.mark.parametrize("grouping", [6, (2, 6)], ids=["all", "a range"])
def test_a_convolution_of_a_stream_that_met_few_classes_is_refused_by_name(
    grouping: Any, tmp_path: Path
) -> None:
    layer = SpelaConv2d(1, 4, 3, 6, output_size=(2, 2), symmetric_dim=8, grouping=grouping)
    stream = StreamingClassifier(SpelaSequential(layer))
    for label in range(3):
        stream.observe(torch.rand(2, 1, 6, 6), [label, 0])
    with pytest.raises(ValueError, match=r"module '0'.* classes than it has met so far"):
        stream.net.save_pretrained(tmp_path / "few")
    assert not (tmp_path / "few").exists()


@pytest.mark.parametrize("grouping", [(2, 4), 3])
def test_a_convolution_may_group_as_many_classes_as_it_has(grouping: Any, tmp_path: Path) -> None:
    layer = SpelaConv2d(1, 4, 3, 3, output_size=(2, 2), symmetric_dim=8, grouping=grouping)
    SpelaSequential(layer).save_pretrained(tmp_path)
    assert torch.equal(SpelaSequential.from_pretrained(tmp_path)[0].grouping, layer.grouping)


def test_a_norm_whose_statistics_stay_is_refused(tmp_path: Path) -> None:
    x = torch.randn(4, 2, 6, 6)
    block = SpelaBlock(nn.Conv2d(2, 4, 3), 3, x, channels=5, hidden=6)
    convolution = SpelaConv2d(2, 4, 3, 3, output_size=(2, 2), symmetric_dim=8)
    for layer, norm in ((block, block.head.hidden.norm), (convolution, convolution.norm)):
        norm.track_running_stats = False
        with pytest.raises(ValueError, match=r"norm whose statistics stay \(track_running_stats\)"):
            SpelaSequential(layer).save_pretrained(tmp_path / "kept")
        assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("part", ["hidden", "convolution"])
def test_the_norms_of_a_blocks_head_keep_their_eps_and_momentum(part: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 2, 6, 6)
    net = SpelaSequential(SpelaBlock(nn.Conv2d(2, 4, 3), 3, x, channels=5, hidden=6))
    norm = getattr(net[0].head, part).norm
    norm.eps, norm.momentum = 0.5, 0.25
    net.local_step(x, torch.arange(8) % 3, LocalSGD(net.parameters(), lr=0.1))
    net.save_pretrained(tmp_path)
    loaded = SpelaSequential.from_pretrained(tmp_path)
    found = getattr(loaded[0].head, part).norm
    assert (found.eps, found.momentum) == (0.5, 0.25)
    assert torch.equal(loaded.eval()(x), net.eval()(x))
    getattr(net[0].head, part).norm = nn.GroupNorm(1, norm.num_features)
    with pytest.raises(ValueError, match=f"head.{part}.norm that is no plain nn.BatchNorm2d"):
        net.save_pretrained(tmp_path / "other")


def test_weights_that_share_memory_are_refused(tmp_path: Path) -> None:
    net = SpelaSequential(SpelaLinear(4, 4, 3), SpelaLinear(4, 4, 3))
    net[1].weight.data = net[0].weight.data
    with pytest.raises(ValueError, match="are one tensor"):
        net.save_pretrained(tmp_path / "tied")
    assert not (tmp_path / "tied").exists()


def test_a_modules_text_stays_in_its_block() -> None:
    class Odd(nn.Identity):
        def extra_repr(self) -> str:
            return "a\n```\n# a heading"

    assert network_card(SpelaSequential(Odd(), SpelaLinear(4, 4, 3))).count("```") == 4
