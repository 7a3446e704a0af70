"""Weights beside the file, for runtimes that cannot replace an initializer: every call feeds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from spela import RowNorm, SpelaConv2d, SpelaLinear, SpelaSequential
from spela.export import export_run, inference_program, train_step_program, write_onnx
from spela.files.tensors import save_tensors
from spela.optim import LocalAdam

LAYER = {"activation": "gelu", "objective": "softmax"}


def _linear() -> SpelaSequential:
    return SpelaSequential(
        nn.Flatten(), RowNorm(), SpelaLinear(36, 24, 5, **LAYER), SpelaLinear(24, 16, 5, **LAYER)
    )


def _convolutions() -> SpelaSequential:
    return SpelaSequential(
        SpelaConv2d(1, 8, 3, 5, output_size=(3, 3), padding=1, symmetric_dim=12),
        nn.Flatten(),
        SpelaLinear(72, 16, 5, **LAYER),
    )


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _run(path: Path, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Feed what the file takes: nothing that it needs is missing, as the engine makes sure."""
    session = _session(path)
    taken = {entry.name for entry in session.get_inputs()}
    names = [entry.name for entry in session.get_outputs()]
    values = session.run(names, {name: feed[name] for name in taken})
    return dict(zip(names, values, strict=True))


@pytest.mark.parametrize("build", [_linear, _convolutions])
def test_inference_answers_with_the_weights_that_a_step_has_reached(build, tmp_path):
    torch.manual_seed(0)
    net = build()
    optimizer = LocalAdam(net.parameters(), lr=0.01)
    shape = (1, 6, 6)
    write_onnx(
        train_step_program(net, optimizer, shape), tmp_path / "step.onnx", weights_apart=True
    )
    asked = inference_program(net, shape, weights_as_inputs=True)
    write_onnx(asked, tmp_path / "net.onnx", weights_apart=True)
    x, y = torch.rand(7, *shape), torch.arange(7) % 5
    carried = load_file(tmp_path / "step.safetensors")
    for name, value in load_file(tmp_path / "net.safetensors").items():
        np.testing.assert_array_equal(value, carried[name], err_msg=name)
    for _ in range(3):
        given = {"x": x.numpy(), "target": y.numpy(), "lr": np.array(0.01, np.float32)}
        modes = {"training": np.array(True)}
        found = _run(tmp_path / "step.onnx", {**given, **modes, **carried})
        carried = {name[4:]: value for name, value in found.items() if name.startswith("new.")}
    first = net.layer_scores(x)[0].detach()
    reached = {name: torch.from_numpy(value) for name, value in carried.items()}
    net.load_state_dict({name: reached.get(name, kept) for name, kept in net.state_dict().items()})
    answers = _run(tmp_path / "net.onnx", {"x": x.numpy(), **carried})
    net.eval()
    assert (first - net.layer_scores(x)[0]).abs().max() > 0.01
    for eager, other in zip(net.layer_scores(x), answers.values(), strict=True):
        torch.testing.assert_close(torch.from_numpy(other), eager, rtol=0, atol=1e-5)


def test_the_files_hold_the_weights_once_and_every_call_must_feed_them(tmp_path):
    net = _linear()
    program = train_step_program(net, LocalAdam(net.parameters()), (1, 6, 6))
    write_onnx(program, tmp_path / "step.onnx", weights_apart=True)
    session = _session(tmp_path / "step.onnx")
    assert [entry.name for entry in session.get_inputs()] == list(program.inputs)
    held = load_file(tmp_path / "step.safetensors")
    assert held.keys() == program.defaults.keys()
    np.testing.assert_array_equal(held["2.weight"], net[2].weight.detach())
    inside = {entry.name for entry in onnx.load(tmp_path / "step.onnx").graph.initializer}
    assert not inside & held.keys()


def test_a_program_without_such_inputs_and_a_name_taken_are_refused(tmp_path):
    inside = inference_program(_linear(), (1, 6, 6))
    with pytest.raises(ValueError, match="weights_as_inputs=True"):
        write_onnx(inside, tmp_path / "net.onnx", weights_apart=True)
    with pytest.raises(ValueError, match=r"is for .onnx files, got .*net.pt2"):
        export_run(tmp_path, tmp_path / "net.pt2", weights_apart=True)
    assert not list(tmp_path.iterdir())


def test_another_file_in_the_weights_place_stays_and_an_older_one_of_ours_goes(tmp_path):
    apart = inference_program(_linear(), (1, 6, 6), weights_as_inputs=True)
    taken = tmp_path / "checkpoint.safetensors"  # as a run's folder has one
    save_tensors(taken, {"a": torch.ones(2)}, {"format": "spela-checkpoint-1"})
    before = taken.read_bytes()
    with pytest.raises(ValueError, match="another program's or a run's"):
        write_onnx(apart, tmp_path / "checkpoint.onnx", weights_apart=True)
    assert taken.read_bytes() == before
    assert list(tmp_path.iterdir()) == [taken]
    for _ in range(2):
        write_onnx(apart, tmp_path / "net.onnx", weights_apart=True)
    assert load_file(tmp_path / "net.safetensors").keys() == apart.defaults.keys()


def test_programs_of_other_versions_keep_their_own_weights(tmp_path):
    for name in ("net.v1", "net.v2"):
        program = inference_program(_linear(), (1, 6, 6), weights_as_inputs=True)
        write_onnx(program, tmp_path / name, weights_apart=True)
        held = load_file(tmp_path / f"{name}.safetensors")
        np.testing.assert_array_equal(held["2.weight"], program.defaults["2.weight"].detach())
    assert len(list(tmp_path.iterdir())) == 4
