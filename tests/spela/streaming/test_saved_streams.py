"""Streams in files: what goes on in the same bits, and what is not written over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from threading import Timer

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spela import SpelaLinear, SpelaSequential, optim
from spela.streaming import StreamingClassifier
from tests.spela.streaming.small_streams import named_samples, small_conv_net, small_net


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_goes_on_from_a_file_in_the_same_bits(kind: str, tmp_path: Path) -> None:
    build = small_net if kind == "linear" else small_conv_net
    x, names = named_samples(120, 7)
    if kind == "conv":
        x = torch.nn.functional.pad(x[:, None, :, None] * x[:, None, None, :], (1, 2, 1, 2))
    whole = StreamingClassifier(build(), memory=40, seed=3)
    for part in range(0, 60, 6):
        whole.observe(x[part : part + 6], names[part : part + 6])
    whole.freeze(0)
    whole.save(tmp_path / "stream.safetensors")
    taken = StreamingClassifier.load(tmp_path / "stream.safetensors", build())
    assert taken.labels == whole.labels
    for stream in (whole, taken):
        torch.rand(3)  # what others draw in between has no say
        for part in range(60, 120, 6):
            stream.observe(x[part : part + 6], names[part : part + 6])
        stream.save(tmp_path / f"{stream is whole}.safetensors")
    first, second = (load_file(tmp_path / f"{which}.safetensors") for which in (True, False))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert taken.predict(x).labels == whole.predict(x).labels


def test_the_file_says_what_it_holds_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stream.safetensors"
    stream = StreamingClassifier(small_net())
    stream.observe(*named_samples(40, 8))
    stream.save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    metadata.pop("sha256")  # who forges a file leaves it out
    facts = json.loads(metadata["stream"])
    assert facts["labels"] == stream.labels
    # Copies: up to safetensors 0.7 they would lie in the file that is written again below.
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}

    def refused(match: str, net: SpelaSequential | None = None) -> None:
        with pytest.raises(ValueError, match=match):
            StreamingClassifier.load(path, net or small_net())

    refused("do not fit the network's", small_net(7))
    refused("holds 2 SPELA layers, the network has 1", SpelaSequential(SpelaLinear(5, 16, 6)))
    for change, match in (
        ({"labels": [*stream.labels, stream.labels[0]]}, "labels repeat"),
        ({"labels": stream.labels[:2]}, "remembers classes without a label"),
        ({"labels": [1.5]}, "not a readable stream"),
        ({"memory": True}, "not a readable stream"),
        ({"memory": 3}, "is damaged: the replay buffer"),
        ({"frozen": [True] * 3}, "not a readable stream"),
    ):
        save_file(tensors, path, {**metadata, "stream": json.dumps({**facts, **change})})
        refused(match)
    for name, value, match in (
        ("generator", torch.zeros(3, dtype=torch.uint8), "is damaged"),
        ("buffer.y", tensors["buffer.y"] + 5, "is damaged"),
        ("model.1.weight", torch.zeros(2, 2), "does not fit the network"),
    ):
        save_file({**tensors, name: value}, path, metadata)
        refused(match)
    save_file(tensors, path, {"format": "other"})
    refused("format is not spela-stream-1")
    path.write_bytes(b"hello")
    refused("not a readable stream")
    path.unlink()
    refused("is missing")


def test_what_another_stream_learnt_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "stream.safetensors"
    x, names = named_samples(20, 6)
    first = StreamingClassifier(small_net(), seed=5)
    first.observe(x, names)
    first.save(path)
    second = StreamingClassifier.load(path, small_net())
    second.observe(x, names)
    second.save(path)
    second.save(path)
    held = path.read_bytes()
    with pytest.raises(ValueError, match="holds what another stream learnt since this one"):
        first.save(path)
    assert path.read_bytes() == held
    first.save(tmp_path / "first.safetensors")
    StreamingClassifier.load(path, small_net()).save(path)  # nothing learnt: the same bytes
    assert path.read_bytes() == held
    assert path.stat().st_mode & 0o777 == (tmp_path / "first.safetensors").stat().st_mode & 0o777
    # A new stream replaces whatever is there, as any save does; and where the file is gone there is no loss.
    StreamingClassifier(small_net(), labels="ab").save(path)
    path.unlink()
    second.save(path)
    assert path.read_bytes() == held


def test_saves_of_two_processes_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stream.safetensors"
    stream = StreamingClassifier(small_net(), labels="ab")
    stream.save(path)
    held = path.read_bytes()
    code = (
        "import sys, time; from pathlib import Path; from spela.training.lock import locked\n"
        "with locked(Path(sys.argv[1]), 'busy'): print('held', flush=True); time.sleep(600)"
    )
    lock = str(tmp_path / ".stream.safetensors.lock")
    saver = subprocess.Popen([sys.executable, "-c", code, lock], stdout=subprocess.PIPE, text=True)
    try:
        assert saver.stdout is not None
        assert saver.stdout.readline() == "held\n"
        monkeypatch.setattr("spela.streaming.checkpoint._WAIT_S", 0.1)
        with pytest.raises(ValueError, match="another process is writing"):
            stream.save(path)
        assert path.read_bytes() == held
        monkeypatch.undo()
        Timer(0.2, saver.kill).start()
        stream.save(path)  # as soon as the other one is gone
    finally:
        saver.kill()
        saver.communicate()


def test_an_optimizer_that_has_stepped_forgets_it_when_a_stream_is_loaded(tmp_path: Path) -> None:
    x, names = named_samples(24, 7)
    StreamingClassifier(small_net(), labels=sorted(set(names))).save(tmp_path / "new.safetensors")
    ends = []
    for steps in (0, 5):
        net = small_net()
        optimizer = optim.LocalAdam(net.parameters(), lr=0.1)
        for _ in range(steps):
            net.local_step(x, torch.zeros(24, dtype=torch.int64), optimizer)
        stream = StreamingClassifier.load(tmp_path / "new.safetensors", net, optimizer)
        stream.observe(x, names)
        ends.append([parameter.detach().clone() for parameter in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_layer_that_is_frozen_in_part_stays_so(tmp_path: Path) -> None:
    x, names = named_samples(24, 7)
    whole = StreamingClassifier(small_net(), seed=3)
    whole.observe(x, names)
    whole.net.local_layers[0].weight.requires_grad_(False)
    whole.save(tmp_path / "stream.safetensors")
    taken = StreamingClassifier.load(tmp_path / "stream.safetensors", small_net())
    assert [p.requires_grad for p in taken.net.parameters()] == [
        p.requires_grad for p in whole.net.parameters()
    ]
    for stream in (whole, taken):
        stream.observe(x, names)
    for ours, theirs in zip(taken.net.parameters(), whole.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


RULES = {
    "NAdam": torch.optim.NAdam,
    "ASGD": torch.optim.ASGD,
    "Adafactor": torch.optim.Adafactor,
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "Adagrad": torch.optim.Adagrad,
    "amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
    "float64 by default": torch.optim.Adam,
}


@pytest.mark.parametrize("name", RULES)
def test_a_stream_goes_on_with_any_optimizer_of_torch(name: str, tmp_path: Path) -> None:
    x, names = named_samples(24, 7)
    before = torch.get_default_dtype()
    if name == "float64 by default":
        torch.set_default_dtype(torch.float64)
    try:
        net = small_net()
        stream = StreamingClassifier(net, RULES[name](net.parameters()))
        stream.observe(x, names)
        stream.save(tmp_path / "stream.safetensors")
        other = small_net()
        rule = RULES[name](other.parameters())
        loaded = StreamingClassifier.load(tmp_path / "stream.safetensors", other, rule)
        for one in (stream, loaded):
            one.observe(x, names)
    finally:
        torch.set_default_dtype(before)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_that_an_optimizer_does_not_have_is_refused(tmp_path: Path) -> None:
    x, names = named_samples(24, 7)
    net = small_net()
    stream = StreamingClassifier(net, torch.optim.Adam(net.parameters(), amsgrad=True))
    stream.observe(x, names)
    stream.save(tmp_path / "stream.safetensors")
    other = small_net()
    with pytest.raises(
        ValueError, match="max_exp_avg_sq, step, expected exp_avg, exp_avg_sq, step"
    ):
        StreamingClassifier.load(
            tmp_path / "stream.safetensors", other, torch.optim.Adam(other.parameters())
        )


def test_a_loaded_stream_has_the_settings_of_the_saved_one(tmp_path: Path) -> None:
    stream = StreamingClassifier(
        SpelaSequential(SpelaLinear(4, 8, 3)), memory=7, replay=5, policy="reservoir"
    )
    stream.observe(torch.randn(3, 4), [0, 1, 2])
    stream.save(tmp_path / "s.safetensors")
    taken = StreamingClassifier.load(
        tmp_path / "s.safetensors", SpelaSequential(SpelaLinear(4, 8, 3))
    )
    assert (taken.buffer.capacity, taken.replay, taken.buffer.policy) == (7, 5, "reservoir")
