"""Streams: classes that come later, what the buffer saves, freezing, samples that are refused."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from spela import SpelaLinear, SpelaSequential, optim
from spela.streaming import StreamingClassifier
from tests.spela.streaming.small_streams import named_samples, small_conv_net, small_net

ROOT = Path(__file__).resolve().parents[3]


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
    x, names = named_samples(20, 1, classes=3)
    growing, small = small_net(6), small_net(6)
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
    x, names = named_samples(30, 2)
    one, batch = (StreamingClassifier(small_net(), seed=1) for _ in range(2))
    for row, name in zip(x, names, strict=True):
        one.observe(row, name)
        batch.observe(row[None], [name])
    for key, value in one.net.state_dict().items():
        assert torch.equal(value, batch.net.state_dict()[key])
    assert len(one.buffer) == 30


def test_every_prediction_has_its_confidence() -> None:
    net = small_net()
    stream = StreamingClassifier(net, optim.LocalAdam(net.parameters(), lr=0.02))
    x, names = named_samples(300, 3)
    for part in range(0, 300, 10):
        stream.observe(x[part : part + 10], names[part : part + 10])
    test_x, test_names = named_samples(200, 4)
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
    stream = StreamingClassifier(small_net(4), labels=["known"])
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
    stream = StreamingClassifier(small_net())
    x, names = named_samples(10, 5, classes=2)
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
    fresh = StreamingClassifier(small_net())
    with pytest.raises(ValueError, match="features"):
        fresh.observe(x[:, :4], names)
    assert fresh.labels == []
    assert len(stream.labels) == 2
    assert torch.equal(stream.generator.get_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in stream.net.state_dict().items())
    with pytest.raises(ValueError, match="no class is known yet"):
        fresh.predict(x)


def test_a_frozen_layer_stays_and_rates_are_each_layers_own() -> None:
    net = small_net()
    optimizer = optim.LocalSGD(optim.layer_groups(net, [0.0, None]), lr=0.5)
    stream = StreamingClassifier(net, optimizer)
    x, names = named_samples(20, 6)
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


def test_convolutions_grow_too_and_keep_their_statistics_when_frozen() -> None:
    stream = StreamingClassifier(small_conv_net())
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


def test_the_documented_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "concepts" / "streaming.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in page.split("```python\n")[1:]]
    assert len(blocks) >= 3
    namespace: dict[str, object] = {}
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(block, namespace)
    assert (tmp_path / "stream.safetensors").exists()


def test_one_sample_without_a_batch_is_named(tmp_path: Path) -> None:
    x, names = named_samples(24, 7)
    stream = StreamingClassifier(small_net())
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


def test_floats_of_pixels_are_no_samples_of_a_stream_of_pixels() -> None:
    x, names = named_samples(20, 3)
    pixels = (40 * (x - x.min())).clamp(0, 255).to(torch.uint8)
    stream = StreamingClassifier(small_net())
    stream.observe(pixels, names)
    answers = stream.predict(pixels).labels
    assert stream.predict(pixels.float() / 255).labels == answers
    assert stream.predict(pixels.double() / 255).labels == answers
    for wide in (pixels.float(), pixels.double()):
        with pytest.raises(ValueError, match=r"`x` holds floats from .* trained on pixels"):
            stream.predict(wide)
