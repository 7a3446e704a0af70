"""A checkpoint put into a network and its optimizer: all of it, nothing else, and its own tensors stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spela.data import load_dataset
from spela.experiments import make_config, run
from spela.experiments.models import build_network, build_optimizer, network_for
from spela.training import RunFolder, Trainer, load_checkpoint, restore


def test_a_checkpoint_can_be_restored_again_after_training_went_on(tmp_path: Path) -> None:
    data = load_dataset("digits").subset(train=100, test=20)
    config = make_config("digits", layers=(8, 8), epochs=1)
    run(config, data, tmp_path)
    checkpoint = load_checkpoint(tmp_path / "checkpoint.safetensors")
    before = {name: value.clone() for name, value in checkpoint.tensors.items()}
    x, y = data.test_x / 255, data.test_y
    ends = []
    for earlier_steps in (0, 3):  # an optimizer that has a state of its own already
        net = build_network(config, data.sample_shape, 10)
        optimizer = build_optimizer(config, net)
        for _ in range(earlier_steps):
            net.local_step(x, y, optimizer)
        restore(checkpoint, net, optimizer)
        net.eval()
        for _ in range(2):
            net.local_step(x, y, optimizer)
        ends.append([parameter.detach() for parameter in net.parameters()])
    assert all(torch.equal(checkpoint.tensors[name], value) for name, value in before.items())
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_checkpoint_is_restored_wholly_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_dataset("digits").subset(train=100, test=20)
    config = make_config("digits", layers=(8, 8), epochs=1)
    run(config, data, tmp_path)
    checkpoint = load_checkpoint(tmp_path / "checkpoint.safetensors")
    net = build_network(config, data.sample_shape, 10)
    before = [value.clone() for value in net.state_dict().values()]
    load = net.load_state_dict

    def interrupted(state: dict) -> None:
        load(state)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(net, "load_state_dict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        restore(checkpoint, net)
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))


def test_a_trainer_that_was_stopped_within_an_epoch_wants_its_checkpoint(tmp_path: Path) -> None:
    data = load_dataset("digits").subset(train=200, test=20)
    config = make_config("digits", layers=(8, 8), epochs=2)
    whole = run(config, data, tmp_path / "whole")
    net = network_for(config, data)
    stopped = [True]

    class CtrlC:
        def on_epoch_start(self, epoch: int, epochs: int, steps: int) -> None: ...

        def on_epoch_end(self, record: dict) -> None: ...

        def on_progress(self, steps_done: int, losses: list[float]) -> None:
            if stopped:
                stopped.clear()
                raise KeyboardInterrupt

    folder = RunFolder(tmp_path / "stopped")
    trainer = Trainer(config, net, build_optimizer(config, net), data, folder, CtrlC())
    trainer.start()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    with pytest.raises(ValueError, match="broken off within an epoch"):
        trainer.fit()
    trainer.resume(load_checkpoint(folder.checkpoint))
    assert trainer.fit()["weight_norm"] == whole["weight_norm"]
