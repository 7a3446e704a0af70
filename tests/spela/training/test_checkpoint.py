"""A checkpoint put into a network and its optimizer: all of it, nothing else, and its own tensors stay."""

from __future__ import annotations

from pathlib import Path

import torch

from spela.data import load_dataset
from spela.experiments import make_config, run
from spela.experiments.models import build_network, build_optimizer
from spela.training import load_checkpoint, restore


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
