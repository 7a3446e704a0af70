"""A device that trains: an inference engine's session, and what it keeps between two steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from spela.data import load_dataset
from spela.export import Program


def digit_batches(steps: int, size: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches of the training digits."""
    data = load_dataset("digits")
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = torch.randint(len(data.train_y), (size,), generator=generator)
        yield data.train_x[chosen], data.train_y[chosen]


class Engine:
    """What a device keeps: a session, and the weights and state it has reached."""

    def __init__(self, session: Any, program: Program) -> None:
        self.session = session
        self.outputs = list(program.outputs)
        self.carried: dict[str, np.ndarray] = {}  # empty: the file's defaults

    def step(self, x: Tensor, target: Tensor, lr: float, **modes: Tensor) -> dict[str, np.ndarray]:
        """Every output of one step; the weights and the state that it gives are kept."""
        feed = {"x": x.numpy(), "target": target.numpy(), "lr": np.array(lr, np.float32)}
        feed |= {name: mask.numpy() for name, mask in modes.items()}
        values = self.session.run(self.outputs, {**feed, **self.carried})
        found = dict(zip(self.outputs, values, strict=True))
        self.carried = {k.removeprefix("new."): v for k, v in found.items() if k.startswith("new.")}
        return found


def assert_forward_operators_only(path: Path) -> None:
    """No autograd, no training operator: only the plain ai.onnx domain."""
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    assert {entry.domain for entry in model.opset_import} == {""}
    assert not model.training_info
    assert not model.functions
    names = {node.op_type for node in model.graph.node}
    assert "MatMul" in names
    assert not {name for name in names if "Grad" in name or name in ("Adam", "Momentum")}
