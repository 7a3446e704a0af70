"""ExecuTorch's runtime gives what eager PyTorch gives; runs where the extra is installed."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from spela import RowNorm, SpelaConv2d, SpelaLinear, SpelaSequential
from spela.export import inference_program, train_step_program, write_pte
from spela.optim import LocalAdam


def _net() -> SpelaSequential:
    return SpelaSequential(
        nn.Flatten(), RowNorm(), SpelaLinear(64, 32, 10), SpelaLinear(32, 32, 10)
    )


def test_a_batch_size_is_needed(tmp_path, monkeypatch):
    net = _net()
    monkeypatch.setattr("spela.export.pte_file.find_spec", lambda name: name)
    with pytest.raises(ValueError, match="give it a batch size"):
        write_pte(train_step_program(net, LocalAdam(net.parameters()), (64,)), tmp_path / "a.pte")
    monkeypatch.setattr("spela.export.pte_file.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install executorch"):
        write_pte(train_step_program(net, LocalAdam(net.parameters()), (64,)), tmp_path / "a.pte")


def _conv_net() -> SpelaSequential:
    conv = SpelaConv2d(1, 6, 3, 10, (3, 3), symmetric_dim=8)
    assert conv.norm is not None
    nn.init.uniform_(conv.norm.bias)  # with none, no loss would tell the batch norm's factors
    return SpelaSequential(conv, nn.Flatten(), RowNorm(), SpelaLinear(54, 32, 10))


@pytest.mark.parametrize("build", [_net, _conv_net])
def test_steps_match_eager_training(build, tmp_path):
    runtime = pytest.importorskip("executorch.runtime")
    torch.manual_seed(0)
    net = build()
    local = LocalAdam(net.parameters(), 1e-2)
    program = train_step_program(net, local, (1, 8, 8), batch_size=6)
    write_pte(program, tmp_path / "step.pte")
    loaded = runtime.Runtime.get().load_program(tmp_path / "step.pte")
    facts = json.loads(loaded.load_method("spela").execute([])[0])
    given = {"lr": torch.tensor(1e-2), "training": torch.tensor(True)}
    modes = [given[name] for name in facts["inputs"] if name in given]
    carried = facts["inputs"][2 + len(modes) :]
    state = [loaded.load_method(f"default.{name}").execute([])[0] for name in carried]
    step = loaded.load_method("forward")
    for _ in range(20):
        x, target = torch.rand(6, 1, 8, 8), torch.randint(10, (6,))
        found = step.execute([x, target, *modes, *state])
        losses, state = found[0].clone(), [value.clone() for value in found[3:]]
        expected = net.local_step(x, target, local)
        torch.testing.assert_close(losses, expected, rtol=0, atol=1e-4)
    reached, expected = dict(zip(carried, state, strict=True)), net.state_dict()
    for name in expected.keys() & reached.keys():
        torch.testing.assert_close(reached[name], expected[name], rtol=0, atol=1e-4)


def test_inference_of_convolutions_matches_eager_answers(tmp_path):
    runtime = pytest.importorskip("executorch.runtime")
    torch.manual_seed(0)
    net = _conv_net().eval()
    write_pte(inference_program(net, (1, 8, 8), batch_size=6), tmp_path / "net.pte")
    loaded = runtime.Runtime.get().load_program(tmp_path / "net.pte")
    x = torch.rand(6, 1, 8, 8)
    answers = loaded.load_method("forward").execute([x])
    for answer, eager in zip(answers, net.layer_scores(x), strict=True):
        torch.testing.assert_close(answer, eager, rtol=0, atol=1e-5)
