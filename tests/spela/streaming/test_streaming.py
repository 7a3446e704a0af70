"""Streams: classes that come later, what the buffer saves, freezing, saves that go on in the same bits."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from spela import RowNorm, SpelaConv2d, SpelaLinear, SpelaSequential, optim
from spela.streaming import StreamingClassifier

ROOT = Path(__file__).resolve().parents[3]


def _net(max_classes: int = 6, objective: str = "softmax") -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    return SpelaSequential(
        RowNorm(),
        SpelaLinear(5, 16, max_classes, objective=objective, generator=g),
        nn.Dropout(0.2),
        SpelaLinear(16, 16, max_classes, objective=objective, generator=g),
    )


def _samples(rows: int, seed: int, classes: int = 5) -> tuple[torch.Tensor, list[str]]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (rows,), generator=g)
    x = torch.randn(rows, 5, generator=g) * 0.3 + 2 * torch.eye(5)[y]
    return x, ["abcde"[label] for label in y.tolist()]


def test_old_classes_survive_new_ones_with_the_buffer_and_not_without() -> None:
    example = runpy.run_path(str(ROOT / "examples" / "growing_classes.py"))
    remembered, forgotten = example["run"](0, 500), example["run"](0, 0)
    assert remembered["old, before"] > 0.97
    assert remembered["old, after"] > 0.92
    assert remembered["new, after"] > 0.92
    assert forgotten["old, before"] > 0.97
    assert forgotten["new, after"] > 0.92
    assert forgotten["old, after"] < 0.3
    assert remembered["old, after"] - forgotten["old, after"] > 0.6


def test_classes_to_come_are_in_neither_objective_nor_prediction() -> None:
    x, names = _samples(20, 1, classes=3)
    growing, small = _net(6), _net(6)
    order = list(dict.fromkeys(names))
    for layer in small.local_layers:  # the same network, made for three classes
        layer.vectors, layer.num_classes = layer.vectors[:3].clone(), 3
    stream = StreamingClassifier(
        growing, optim.LocalSGD(growing.parameters(), lr=0.1), memory=0, seed=4
    )
    growing[2].p = small[2].p = 0.0
    losses = stream.observe(x, names)
    target = torch.tensor([order.index(name) for name in names])
    expected = small.local_step(x, target, optim.LocalSGD(small.parameters(), lr=0.1))
    assert torch.equal(losses, expected)
    for name, value in small.state_dict().items():
        assert torch.equal(growing.state_dict()[name], value), name
    assert growing(x).shape == (20, 3)
    assert stream.labels == order


def test_one_sample_at_a_time_is_the_same_as_batches_of_one() -> None:
    x, names = _samples(30, 2)
    one, batch = (StreamingClassifier(_net(), seed=1) for _ in range(2))
    for row, name in zip(x, names, strict=True):
        one.observe(row, name)
        batch.observe(row[None], [name])
    for key, value in one.net.state_dict().items():
        assert torch.equal(value, batch.net.state_dict()[key])
    assert len(one.buffer) == 30


def test_every_prediction_has_its_confidence() -> None:
    net = _net()
    stream = StreamingClassifier(net, optim.LocalAdam(net.parameters(), lr=0.02))
    x, names = _samples(300, 3)
    for part in range(0, 300, 10):
        stream.observe(x[part : part + 10], names[part : part + 10])
    test_x, test_names = _samples(200, 4)
    found = stream.predict(test_x)
    right = torch.tensor([a == b for a, b in zip(found.labels, test_names, strict=True)])
    assert right.double().mean() > 0.9
    top = stream.net(test_x).topk(2, dim=1).values
    torch.testing.assert_close(found.margin, top[:, 0] - top[:, 1])
    early = stream.predict(test_x, exit_threshold=0.0)
    assert early.layer.unique().tolist() == [0]
    far = stream.predict(torch.randn(200, 5))  # of no class
    assert far.margin.mean() < found.margin.mean()


def test_labels_of_any_kind_and_the_number_of_classes() -> None:
    stream = StreamingClassifier(_net(4), labels=["known"])
    x = torch.randn(3, 5)
    stream.observe(x, np.array([7, 8, 7]))
    stream.observe(x[:1], torch.tensor([8]))
    assert stream.labels == ["known", 7, 8]
    stream.observe(x[0], "7")  # not the number
    assert stream.labels == ["known", 7, 8, "7"]
    weights = stream.net[1].weight.clone()
    with pytest.raises(
        ValueError, match="'more' is one class too many: the network was built for 4"
    ):
        stream.observe(x[:2], ["7", "more"])
    assert stream.labels == ["known", 7, 8, "7"]
    assert torch.equal(weights, stream.net[1].weight)
    for label in (True, 1.5, None, ("a",), np.True_):
        with pytest.raises(TypeError, match="must be a str or an int"):
            stream.observe(x[:1], [label])


def test_a_refused_batch_changes_nothing() -> None:
    stream = StreamingClassifier(_net())
    x, names = _samples(10, 5, classes=2)
    stream.observe(x, names)
    before = {k: v.clone() for k, v in stream.net.state_dict().items()}
    state = stream.generator.get_state()
    bad = x.clone()
    bad[3, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN, Inf or beyond float32"):
        stream.observe(bad, names)
    with pytest.raises(ValueError, match="same samples"):
        stream.observe(x, names[:3])
    with pytest.raises(ValueError, match="same samples"):
        stream.observe(x[:0], [])
    with pytest.raises(ValueError, match="pass all samples alike"):
        stream.observe(x[:, :4], ["new"] * 10)
    fresh = StreamingClassifier(_net())
    with pytest.raises(ValueError, match="features"):
        fresh.observe(x[:, :4], names)
    assert fresh.labels == []
    assert len(stream.labels) == 2
    assert torch.equal(stream.generator.get_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in stream.net.state_dict().items())
    with pytest.raises(ValueError, match="no class is known yet"):
        fresh.predict(x)


def test_a_frozen_layer_stays_and_rates_are_each_layers_own() -> None:
    net = _net()
    optimizer = optim.LocalSGD(optim.layer_groups(net, [0.0, None]), lr=0.5)
    stream = StreamingClassifier(net, optimizer)
    x, names = _samples(20, 6)
    start = [layer.weight.clone() for layer in net.local_layers]
    stream.observe(x, names)
    moved = [
        (a - b.weight).abs().max().item() for a, b in zip(start, net.local_layers, strict=True)
    ]
    assert moved[0] == 0
    assert moved[1] > 0
    stream.freeze(1)
    held = net.local_layers[1].weight.clone()
    stream.observe(x, names)
    assert torch.equal(held, net.local_layers[1].weight)
    stream.freeze(1, False)
    stream.observe(x, names)
    assert not torch.equal(held, net.local_layers[1].weight)
    with pytest.raises(ValueError, match=r"must be in 0\.\.1"):
        stream.freeze(2)
    with pytest.raises(ValueError, match="3 learning rates, the network 2"):
        optim.layer_groups(net, [0.1, 0.1, 0.1])


def _conv_net() -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    return SpelaSequential(
        SpelaConv2d(
            1, 4, 3, 5, (3, 3), symmetric_dim=8, grouping=5, objective="softmax", generator=g
        ),
        nn.Flatten(),
        SpelaLinear(36, 16, 5, objective="softmax", generator=g),
    )


def test_convolutions_grow_too_and_keep_their_statistics_when_frozen() -> None:
    stream = StreamingClassifier(_conv_net())
    x = (torch.rand(20, 1, 8, 8) * 255).to(torch.uint8)
    stream.observe(x, [i % 2 for i in range(20)])
    assert stream.net.layer_scores(x / 255)[0].shape == (20, 2)
    stream.observe(x, [i % 3 for i in range(20)])
    assert stream.net.layer_scores(x / 255)[0].shape == (20, 3)
    assert stream.buffer.x.dtype == torch.uint8
    stream.freeze(0)
    before = {k: v.clone() for k, v in stream.net[0].state_dict().items()}
    stream.observe(x, [i % 3 for i in range(20)])
    assert all(torch.equal(v, before[k]) for k, v in stream.net[0].state_dict().items())


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_goes_on_from_a_file_in_the_same_bits(kind: str, tmp_path: Path) -> None:
    build = _net if kind == "linear" else _conv_net
    x, names = _samples(120, 7)
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
    stream = StreamingClassifier(_net())
    stream.observe(*_samples(40, 8))
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
            StreamingClassifier.load(path, net or _net())

    refused("do not fit the network's", _net(7))
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
    x, names = _samples(20, 6)
    first = StreamingClassifier(_net(), seed=5)
    first.observe(x, names)
    first.save(path)
    second = StreamingClassifier.load(path, _net())
    second.observe(x, names)
    second.save(path)
    second.save(path)
    held = path.read_bytes()
    with pytest.raises(ValueError, match="holds what another stream learnt since this one"):
        first.save(path)
    assert path.read_bytes() == held
    first.save(tmp_path / "first.safetensors")
    StreamingClassifier.load(path, _net()).save(path)  # nothing learnt: the same bytes
    assert path.read_bytes() == held
    assert path.stat().st_mode & 0o777 == (tmp_path / "first.safetensors").stat().st_mode & 0o777
    # A new stream replaces whatever is there, as any save does; and where the file is gone there is no loss.
    StreamingClassifier(_net(), labels="ab").save(path)
    path.unlink()
    second.save(path)
    assert path.read_bytes() == held


def test_saves_of_two_processes_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stream.safetensors"
    stream = StreamingClassifier(_net(), labels="ab")
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


def test_the_documented_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "concepts" / "streaming.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in page.split("```python\n")[1:]]
    assert len(blocks) >= 3
    namespace: dict[str, object] = {}
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(block, namespace)
    assert (tmp_path / "stream.safetensors").exists()


def test_an_optimizer_that_has_stepped_forgets_it_when_a_stream_is_loaded(tmp_path: Path) -> None:
    x, names = _samples(24, 7)
    StreamingClassifier(_net(), labels=sorted(set(names))).save(tmp_path / "new.safetensors")
    ends = []
    for steps in (0, 5):
        net = _net()
        optimizer = optim.LocalAdam(net.parameters(), lr=0.1)
        for _ in range(steps):
            net.local_step(x, torch.zeros(24, dtype=torch.int64), optimizer)
        stream = StreamingClassifier.load(tmp_path / "new.safetensors", net, optimizer)
        stream.observe(x, names)
        ends.append([parameter.detach().clone() for parameter in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_layer_that_is_frozen_in_part_stays_so(tmp_path: Path) -> None:
    x, names = _samples(24, 7)
    whole = StreamingClassifier(_net(), seed=3)
    whole.observe(x, names)
    whole.net.local_layers[0].weight.requires_grad_(False)
    whole.save(tmp_path / "stream.safetensors")
    taken = StreamingClassifier.load(tmp_path / "stream.safetensors", _net())
    assert [p.requires_grad for p in taken.net.parameters()] == [
        p.requires_grad for p in whole.net.parameters()
    ]
    for stream in (whole, taken):
        stream.observe(x, names)
    for ours, theirs in zip(taken.net.parameters(), whole.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_one_sample_without_a_batch_is_named(tmp_path: Path) -> None:
    x, names = _samples(24, 7)
    stream = StreamingClassifier(_net())
    stream.observe(x, names)
    for predict in (stream.predict, stream.net.predict, stream.net.predict_detailed):
        with pytest.raises(
            ValueError, match=r"`x` must be a batch \(B, ...\), got shape .*x\[None\]"
        ):
            predict(x[0])
    for call in (
        lambda: stream.observe(x.to_sparse(), names),
        lambda: stream.net.local_losses(x.to_sparse(), torch.zeros(24, dtype=torch.int64)),
    ):
        with pytest.raises(
            TypeError, match=r"`?x`? must be dense, got torch.sparse_coo: use x.to_dense"
        ):
            call()


def test_a_stream_on_the_cpu_seeds_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    StreamingClassifier(SpelaSequential(SpelaLinear(5, 8, 4))).observe(torch.randn(5), "a")
    assert seeds == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_dtype_learns_from_a_stream(dtype: torch.dtype) -> None:
    layer = SpelaLinear(5, 8, 4, objective="softmax", activation="tanh", dtype=dtype)
    optimizer = optim.LocalAdam(layer.parameters(), lr=0.01)
    stream = StreamingClassifier(SpelaSequential(layer), optimizer)
    x = torch.eye(5)[:2]
    for _ in range(60):
        stream.observe(x, ["a", "b"])
    assert stream.predict(x).labels == ["a", "b"]


def test_what_is_no_number_is_not_answered() -> None:
    stream = StreamingClassifier(SpelaSequential(SpelaLinear(5, 8, 4)))
    stream.observe(torch.eye(5)[:2], ["a", "b"])
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN, Inf"):
            stream.predict(torch.full((2, 5), value))
    with pytest.raises(ValueError, match="pass all samples alike"):
        stream.predict(torch.ones(2, 4))
    assert len(stream.predict(np.eye(5)[:2]).labels) == 2  # float64
    half = StreamingClassifier(SpelaSequential(SpelaLinear(5, 8, 4, dtype=torch.float16)))
    with pytest.raises(ValueError, match="NaN, Inf"):
        half.observe(torch.full((2, 5), 1e6), ["a", "b"])


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
    x, names = _samples(24, 7)
    before = torch.get_default_dtype()
    if name == "float64 by default":
        torch.set_default_dtype(torch.float64)
    try:
        net = _net()
        stream = StreamingClassifier(net, RULES[name](net.parameters()))
        stream.observe(x, names)
        stream.save(tmp_path / "stream.safetensors")
        other = _net()
        rule = RULES[name](other.parameters())
        loaded = StreamingClassifier.load(tmp_path / "stream.safetensors", other, rule)
        for one in (stream, loaded):
            one.observe(x, names)
    finally:
        torch.set_default_dtype(before)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_that_an_optimizer_does_not_have_is_refused(tmp_path: Path) -> None:
    x, names = _samples(24, 7)
    net = _net()
    stream = StreamingClassifier(net, torch.optim.Adam(net.parameters(), amsgrad=True))
    stream.observe(x, names)
    stream.save(tmp_path / "stream.safetensors")
    other = _net()
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


def test_floats_of_pixels_are_no_samples_of_a_stream_of_pixels() -> None:
    x, names = _samples(20, 3)
    pixels = (40 * (x - x.min())).clamp(0, 255).to(torch.uint8)
    stream = StreamingClassifier(_net())
    stream.observe(pixels, names)
    answers = stream.predict(pixels).labels
    assert stream.predict(pixels.float() / 255).labels == answers
    assert stream.predict(pixels.double() / 255).labels == answers
    for wide in (pixels.float(), pixels.double()):
        with pytest.raises(ValueError, match=r"`x` holds floats from .* trained on pixels"):
            stream.predict(wide)
