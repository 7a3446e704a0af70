"""Exported inference: onnxruntime and torch.export give what the network gives, at any batch size."""

from __future__ import annotations

import json

import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from spela import RowNorm, SpelaBlock, SpelaConv2d, SpelaLinear, SpelaSequential, convert
from spela.baselines import (
    BackpropSequential,
    DeeplySupervisedSequential,
    ForwardForwardLayer,
    ForwardForwardSequential,
)
from spela.export import inference_program, write_onnx, write_pt2


def _mlp() -> nn.Module:
    return SpelaSequential(
        nn.Flatten(),
        RowNorm("rms"),
        SpelaLinear(48, 32, 10, activation="gelu", objective="softmax"),
        nn.Dropout(0.3),
        SpelaLinear(32, 20, 10, activation="prelu"),
    )


def _cnn() -> nn.Module:
    net = SpelaSequential(
        SpelaConv2d(3, 8, 3, 10, output_size=(3, 3), padding=1, symmetric_dim=12, pool_size=1),
        SpelaConv2d(
            8, 6, 2, 10, output_size=(2, 2), padding=1, symmetric_dim=12, pool="avg", grouping=10
        ),
        nn.Flatten(),
        SpelaLinear(24, 16, 10),
    )
    for layer in net.local_layers[:2]:  # statistics as after some training
        layer.norm.running_mean.uniform_(-0.5, 0.5)
        layer.norm.running_var.uniform_(0.5, 2)
        layer.norm.weight.data.uniform_(-1, 1)
    return net


def _backprop() -> nn.Module:
    return BackpropSequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 10))


def _blocks() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 2), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10),
    )  # fmt: skip
    x = torch.randn(2, 3, 4, 4)
    return convert(model, 10, x, blocks="layers", readout=32, similarity=0.5, dropout=0.2)


def _supervised() -> nn.Module:
    return DeeplySupervisedSequential(*_blocks())


def _forward_forward() -> nn.Module:
    return ForwardForwardSequential(
        nn.Flatten(), ForwardForwardLayer(48, 16), ForwardForwardLayer(16, 12), num_classes=10
    )


NETS = {
    "mlp": (_mlp, (3, 4, 4)),
    "cnn": (_cnn, (3, 3, 3)),
    "blocks": (_blocks, (3, 4, 4)),
    "supervised": (_supervised, (3, 4, 4)),
    "backprop": (_backprop, (3, 4, 4)),
    "forward-forward": (_forward_forward, (3, 4, 4)),
}


@pytest.mark.parametrize("name", NETS)
def test_onnxruntime_gives_eager_scores_of_every_layer(name, session_of):
    torch.manual_seed(0)
    build, shape = NETS[name]
    net = build().train()
    program = inference_program(net, shape)
    assert net.training  # as it was
    session = session_of(program)
    net.eval()
    for batch in (1, 2, 7, 50):
        x = torch.randn(batch, *shape)
        with torch.no_grad():
            expected = net.layer_scores(x)
        found = session.run(None, {"x": x.numpy()})
        assert len(found) == len(expected)
        for eager, other in zip(expected, found, strict=True):
            torch.testing.assert_close(torch.from_numpy(other), eager, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(found[-1]), net(x), rtol=0, atol=1e-5)


def test_all_operators_are_plain_onnx_and_no_path_is_in_the_file(tmp_path):
    program = inference_program(_cnn(), (3, 3, 3), facts={"class_names": ["a"] * 10})
    write_onnx(program, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    (facts,) = (json.loads(entry.value) for entry in model.metadata_props)
    assert facts["class_names"] == ["a"] * 10
    for entry in tmp_path.iterdir():
        assert b".py" not in entry.read_bytes()


def test_a_fixed_batch_size_is_in_the_file(session_of):
    session = session_of(inference_program(_mlp(), (3, 4, 4), batch_size=5))
    assert session.get_inputs()[0].shape == [5, 3, 4, 4]


def test_pt2_loads_and_gives_the_same(tmp_path):
    torch.manual_seed(0)
    net = _cnn().eval()
    write_pt2(inference_program(net, (3, 3, 3)), tmp_path / "net.pt2")
    extra = {"spela.json": ""}
    loaded = torch.export.load(tmp_path / "net.pt2", extra_files=extra).module()
    x = torch.randn(7, 3, 3, 3)
    for eager, other in zip(net.layer_scores(x), loaded(x), strict=True):
        torch.testing.assert_close(other, eager, rtol=0, atol=1e-5)
    assert json.loads(extra["spela.json"])["outputs"] == ["scores.1", "scores.2", "scores.3"]
    assert b".py" not in (tmp_path / "net.pt2").read_bytes()


def test_what_cannot_be_written_is_a_value_error(tmp_path, monkeypatch):
    program = inference_program(_mlp(), (3, 4, 4))
    with pytest.raises(ValueError, match=r"opset must be in 20\.\.25, got 19"):
        write_onnx(program, tmp_path / "net.onnx", opset=19)
    with pytest.raises(ValueError, match="batch size must be at least 1"):
        inference_program(_mlp(), (3, 4, 4), batch_size=0)
    with pytest.raises(ValueError, match="no parameters"):
        inference_program(SpelaSequential(), (3,))
    monkeypatch.setattr("spela.export.onnx_file.MOST_BYTES", 10)
    with pytest.raises(ValueError, match="ends at 2 GiB"):
        write_onnx(program, tmp_path / "net.onnx")
    monkeypatch.setattr("spela.export.onnx_file.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install onnx onnxscript"):
        write_onnx(program, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


class _Turned(SpelaConv2d):
    def scores(self, y):
        return -super().scores(y)


def test_what_a_subclass_or_a_hook_changes_is_exported_or_refused(session_of):
    x = torch.randn(3, 1, 8, 8)
    net = SpelaSequential(nn.Identity(), _Turned(1, 4, 3, 5, output_size=(3, 3))).eval()
    net[0].register_forward_hook(lambda module, args, y: 2 - y)
    program = inference_program(net, (1, 8, 8))
    torch.testing.assert_close(program.exported.module()(x)[0], net(x), rtol=1e-5, atol=1e-6)
    net.register_forward_pre_hook(lambda module, args: (-args[0],))
    with pytest.raises(ValueError, match=r"`net` \(SpelaSequential\) has a forward pre-hook"):
        inference_program(net, (1, 8, 8))


class _Fixed(nn.Module):
    """Takes one batch size alone once it is traced."""

    def forward(self, x):
        return x.flatten(1).repeat(int(x.shape[0]) // len(x), 1)


def test_what_cannot_be_traced_for_any_batch_is_one_line_and_a_fixed_batch_does(session_of):
    net = SpelaSequential(_Fixed(), SpelaLinear(48, 16, 10)).eval()
    with pytest.raises(
        ValueError, match="cannot be traced for any batch size; a fixed one may"
    ) as e:
        inference_program(net, (3, 4, 4))
    assert "\n" not in str(e.value)
    x = torch.randn(4, 3, 4, 4)
    found = session_of(inference_program(net, (3, 4, 4), batch_size=4)).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found[0]), net.layer_scores(x)[0].detach())


def test_a_network_of_tokens_is_exported(session_of):
    torch.manual_seed(0)
    tokens = torch.randint(10, (3, 5))
    net = SpelaSequential(SpelaBlock(nn.Embedding(10, 8), 3, tokens)).eval()
    session = session_of(inference_program(net, (5,)))
    (scores,) = session.run(None, {"x": tokens.numpy()})
    torch.testing.assert_close(torch.from_numpy(scores), net(tokens), rtol=0, atol=1e-5)


def test_autocast_leaves_no_cast_in_a_program():
    net = SpelaSequential(SpelaLinear(4, 8, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        program = inference_program(net, (4,))
        assert torch.is_autocast_enabled("cpu")
    assert not [node for node in program.exported.graph.nodes if "_to_copy" in str(node.target)]


def test_bfloat16_and_pruned_weights_are_a_value_error(tmp_path):
    net = SpelaSequential(SpelaLinear(4, 8, 3))
    with pytest.raises(ValueError, match="bfloat16 have no ONNX file"):
        write_onnx(inference_program(net.bfloat16(), (4,)), tmp_path / "b.onnx")
    prune.l1_unstructured(net[0], "weight", 0.5)
    with pytest.raises(ValueError, match=r"prune\.remove"):
        inference_program(net, (4,))
    assert list(tmp_path.iterdir()) == []


class _Doubled(SpelaSequential):
    def layer_scores(self, x):
        return [2 * scores for scores in super().layer_scores(x)]


def test_scores_of_one_s_own_are_refused():
    with pytest.raises(ValueError, match="`layer_scores` of its own"):
        inference_program(_Doubled(SpelaLinear(4, 8, 3)), (4,))
    net = SpelaSequential(SpelaLinear(4, 8, 3))
    net.layer_scores = lambda x: [x]
    with pytest.raises(ValueError, match="`layer_scores` of its own"):
        inference_program(net, (4,))
