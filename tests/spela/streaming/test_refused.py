"""What a stream refuses leaves no trace, and what it takes may come from NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spela import RowNorm, SpelaLinear, SpelaSequential, optim
from spela.data import Batches, as_tensor, prepare
from spela.early_exit import calibrate_thresholds
from spela.estimator.calibration import fit_temperature
from spela.streaming import StreamingClassifier

X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
NAMES = ["ab"[row % 2] for row in range(12)]


def _net(width: int = 16) -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    return SpelaSequential(
        RowNorm(), SpelaLinear(5, width, 4, generator=g), SpelaLinear(width, 16, 4, generator=g)
    )


def _stream(**settings: Any) -> StreamingClassifier:
    stream = StreamingClassifier(_net(), memory=8, seed=1, **settings)
    stream.observe(X, NAMES)
    return stream


def _everything(stream: StreamingClassifier, path: Path) -> dict[str, torch.Tensor]:
    stream.save(path)
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()["stream"]
    return {**load_file(path), "facts": torch.tensor(list(facts.encode()))}


def _bad(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = X.to(dtype, copy=True)
    x[7, 3] = value
    return x


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "nan": (_bad(torch.nan), NAMES, "NaN, Inf or beyond float32"),
    "square beyond float32": (_bad(1e20), NAMES, "sums of squares are float32"),
    "another shape": (X[:, :4], ["new"] * 12, "pass all samples alike"),
    "another dtype": (X.double(), ["new"] * 12, "pass all samples alike"),
    "integers": (X.long(), ["new"] * 12, "pass all samples alike"),
    "text": ([["a"] * 5], ["new"], "x must be a tensor or an array of numbers, got list"),
    "objects": (
        np.array([[{}] * 5]),
        ["new"],
        "x must be a tensor or an array of numbers, got object",
    ),
    "empty": (X[:0], [], "at least one"),
    "a float label": (X, [*NAMES[:11], 0.5], "must be a str or an int"),
    "bytes": (X[0], b"a", "must be a str or an int"),
    "a table of labels": (X[:2], np.array([["a"], ["b"]]), "must be a str or an int"),
    "too many classes": (X, list("abcdefabcdef"), "one class too many"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_batch_leaves_no_trace(kind: str, tmp_path: Path) -> None:
    x, y, message = REFUSED[kind]
    stream = _stream()
    before = _everything(stream, tmp_path / "a")
    with pytest.raises((ValueError, TypeError), match=message):
        stream.observe(x, y)
    after = _everything(stream, tmp_path / "b")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("x", [_bad(1e39, torch.float64), X.long(), np.zeros((12, 5), np.int32)])
def test_a_first_batch_that_is_refused_leaves_no_trace(x: Any, tmp_path: Path) -> None:
    stream = StreamingClassifier(_net())
    before = _everything(stream, tmp_path / "a")
    with pytest.raises(
        (ValueError, TypeError), match=r"beyond float32|uint8 pixels or floating-point"
    ):
        stream.observe(x, NAMES)
    after = _everything(stream, tmp_path / "b")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert stream.labels == []


def test_an_interrupted_step_knows_no_new_class(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _stream()
    state = stream.generator.get_state()

    def interrupted(*_: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SpelaSequential, "local_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream.observe(X, ["new"] * 12)
    assert stream.labels == ["a", "b"]
    assert stream.net(X).shape == (12, 2)
    assert torch.equal(stream.generator.get_state(), state)
    assert len(stream.buffer) == 8


@pytest.mark.parametrize(
    "kind", ["array", "by column", "big-endian", "read-only", "with a gradient"]
)
def test_arrays_are_taken_by_value(kind: str, tmp_path: Path) -> None:
    x: Any = X.numpy()
    if kind == "by column":
        x = np.asfortranarray(x)
    elif kind == "big-endian":
        x = x.astype(">f4")
    elif kind == "read-only":
        x = x[::-1][::-1].copy()
        x.flags.writeable = False
    elif kind == "with a gradient":
        x = X.clone().requires_grad_()
    expected, found = _stream(), StreamingClassifier(_net(), memory=np.int64(8), seed=np.int32(1))
    found.observe(x, np.array(NAMES))
    one, other = _everything(expected, tmp_path / "a"), _everything(found, tmp_path / "b")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not found.buffer.x.requires_grad
    x = x.detach() if kind == "with a gradient" else x
    assert found.predict(x).labels == expected.predict(X).labels
    assert found.predict(x[:0]).labels == []


def test_a_file_that_does_not_fit_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "stream.safetensors"
    _stream().save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    # Copies: the file, which some versions of safetensors map, is written over below.
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    broken = [
        {**tensors, "model.2.weight": torch.zeros(2, 2)},  # the layer before it fits
        {**tensors, "optimizer.2.weight.exp_avg": torch.zeros(2, 2)},
        {**tensors, "buffer.y": tensors["buffer.y"] + 5},
        {**tensors, "generator": torch.zeros(3, dtype=torch.uint8)},
        {**tensors, "classes.1": tensors["classes.1"][:, :3].contiguous()},
    ]
    for content in broken:
        save_file(content, path, metadata)
        net = _net()
        optimizer = optim.LocalAdam(net.parameters(), lr=1e-3)
        before, scores = {k: v.clone() for k, v in net.state_dict().items()}, net(X)
        with pytest.raises(ValueError, match=r"fit|damaged|expected"):
            StreamingClassifier.load(path, net, optimizer)
        assert torch.equal(net(X), scores)
        assert [layer.num_classes for layer in net.local_layers] == [4, 4]
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert not optimizer.state


def test_numbers_that_are_not_whole_are_refused() -> None:
    for settings in ({"memory": 2.5}, {"replay": 2.5}, {"seed": 0.5}):
        with pytest.raises(TypeError, match="float"):
            StreamingClassifier(_net(), **settings)
    with pytest.raises(TypeError, match="float"):
        Batches(X, torch.arange(12), 2.5, shuffle=False)
    assert [len(y) for _, y in Batches(X, torch.arange(12), np.int32(5), shuffle=False)] == [
        5,
        5,
        2,
    ]


def test_arrays_where_tensors_are_wanted_are_named() -> None:
    y = torch.arange(12) % 4
    with pytest.raises(TypeError, match=r"`x` and `y` must be tensors, got ndarray and Tensor"):
        calibrate_thresholds(_net(), X.numpy(), y)
    with pytest.raises(TypeError, match=r"`x` and `y` must be tensors, got Tensor and list"):
        calibrate_thresholds(_net(), X, y.tolist())
    with pytest.raises(TypeError, match="`y` must be int64 class indices"):
        calibrate_thresholds(_net(), X, y.int())
    with pytest.raises(
        TypeError, match="`scores` and `target` must be tensors, got ndarray and Tensor"
    ):
        fit_temperature(X.numpy(), y)
    with pytest.raises(TypeError, match="x must be a tensor, got ndarray"):
        prepare(X.numpy())
    tensor = torch.ones(2)
    assert as_tensor(tensor, "x") is tensor
    with pytest.raises(ValueError, match="x has masked values, which would count as numbers"):
        as_tensor(np.ma.masked_less(X.numpy(), 0), "x")


def test_a_memory_below_none_is_named_as_it_was_given() -> None:
    with pytest.raises(ValueError, match="`memory` must be 0 or more, got -1"):
        StreamingClassifier(_net(), memory=-1)
