"""ExecuTorch's runtime gives what eager PyTorch gives; runs where the extra is installed."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from spela import RowNorm, SpelaLinear, SpelaSequential
from spela.export import train_step_program, write_pte
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
    with pytest.raises(ValueError, match=r"pip install 'spela\[executorch\]'"):
        write_pte(train_step_program(net, LocalAdam(net.parameters()), (64,)), tmp_path / "a.pte")


def test_steps_match_eager_training(tmp_path):
    runtime = pytest.importorskip("executorch.runtime")
    torch.manual_seed(0)
    net = _net()
    local = LocalAdam(net.parameters(), 1e-2)
    program = train_step_program(net, local, (1, 8, 8), batch_size=6)
    write_pte(program, tmp_path / "step.pte")
    loaded = runtime.Runtime.get().load_program(tmp_path / "step.pte")
    facts = json.loads(loaded.load_method("spela").execute([])[0])
    carried = facts["inputs"][3:]
    state = [loaded.load_method(f"default.{name}").execute([])[0] for name in carried]
    step = loaded.load_method("forward")
    for _ in range(20):
        x, target = torch.rand(6, 1, 8, 8), torch.randint(10, (6,))
        found = step.execute([x, target, torch.tensor(1e-2), *state])
        losses, state = found[0].clone(), [value.clone() for value in found[3:]]
        expected = net.local_step(x, target, local)
        torch.testing.assert_close(losses, expected, rtol=0, atol=1e-4)
    weights = dict(zip(carried, state, strict=True))
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach(), rtol=0, atol=1e-4)
