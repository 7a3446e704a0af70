"""Train on a device that has no PyTorch: a SPELA step exported to ONNX, run by onnxruntime.

    spela train --data digits --layers 128,128 --epochs 1 --out runs/digits
    spela export runs/digits --what train-step --untrained --out step.onnx
    python examples/train_on_device.py step.onnx

Needs numpy, onnxruntime and scikit-learn, whose digits are the data. The file holds the weights it starts
from; every call of the step returns new ones, which are fed to the next call. `--save` keeps them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
from sklearn.datasets import load_digits


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Digits as 0..1 images; of every class each fifth sample is for the test."""
    digits = load_digits()
    x = (digits.images / 16).astype(np.float32)[:, None]
    y = digits.target.astype(np.int64)
    test = np.zeros(len(y), bool)
    test[np.argsort(y, kind="stable")[::5]] = True
    return x[~test], y[~test], x[test], y[test]


class Device:
    """A training step and the weights and optimizer state it has reached."""

    def __init__(self, file: str, seed: int) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = (
            3  # it would warn that weights are inputs here, as they must be
        )
        if not Path(file).is_file():
            raise SystemExit(f"{file} is no file: export one with --what train-step --out {file}")
        self.session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.facts = json.loads(self.session.get_modelmeta().custom_metadata_map["spela"])
        if self.facts["what"] != "train-step":
            raise SystemExit(f"{file} holds no training step: export one with --what train-step")
        inputs = {i.name: i.shape for i in self.session.get_inputs()}
        self.shapes = {name: shape[1:] for name, shape in inputs.items()}
        if any(f"new.{name}" in (o.name for o in self.session.get_outputs()) for name in inputs):
            raise SystemExit(f"{file} has its weights apart: export it without --weights-apart")
        if isinstance(inputs["x"][0], int):
            raise SystemExit(
                f"{file} takes {inputs['x'][0]} samples a call: export it without --batch-size"
            )
        if self.shapes["x"] != [1, 8, 8]:
            taken = ", ".join(map(str, self.shapes["x"]))
            raise SystemExit(f"{file} takes samples of ({taken}), and the digits are (1, 8, 8)")
        self.outputs = [o.name for o in self.session.get_outputs()]
        self.carried: dict[str, np.ndarray] = {}  # empty: the file's own weights
        self.random = np.random.default_rng(seed)

    def modes(self, count: int, training: bool) -> dict[str, np.ndarray]:
        """Which moments batch norms take, and what dropouts multiply by: ones when they are off."""
        modes = {"training": np.array(training)} if "training" in self.shapes else {}
        for name, p in self.facts["dropout"].items():
            shape = (count, *self.shapes[name])
            kept = self.random.random(shape) >= p if training else np.ones(shape)
            modes[name] = (kept / (1 - p if training else 1)).astype(np.float32)
        return modes

    def step(self, x: np.ndarray, y: np.ndarray, lr: float) -> np.ndarray:
        """One update; the losses of all layers."""
        feed = {"x": x, "target": y, "lr": np.array(lr, np.float32)}
        values = self.session.run(
            self.outputs, {**feed, **self.modes(len(x), True), **self.carried}
        )
        found = dict(zip(self.outputs, values, strict=True))
        self.carried = {k[4:]: v for k, v in found.items() if k.startswith("new.")}
        return found["losses"]

    def accuracy(self, x: np.ndarray, y: np.ndarray) -> list[float]:
        """Share of samples that each layer gets right; nothing is learnt."""
        feed = {"x": x, "target": y, "lr": np.array(0, np.float32)}
        names = [name for name in self.outputs if name.startswith("scores.")]
        scores = self.session.run(names, {**feed, **self.modes(len(x), False), **self.carried})
        return [float((s.argmax(axis=1) == y).mean()) for s in scores]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train an exported SPELA step on the digits.")
    parser.add_argument("file", help="from `spela export DIR --what train-step`")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--lr", type=float, help="default: the run's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", help="write the weights and state reached to this .npz file")
    options = parser.parse_args()
    device = Device(options.file, options.seed)
    train_x, train_y, test_x, test_y = split()
    lr = device.facts["lr"] if options.lr is None else options.lr
    show(0, device.accuracy(test_x, test_y))
    for step in range(1, options.steps + 1):
        chosen = device.random.choice(len(train_y), options.batch_size, replace=False)
        losses = device.step(train_x[chosen], train_y[chosen], lr)
        if step % 100 == 0 or step == options.steps:
            show(step, device.accuracy(test_x, test_y), losses)
    if options.save:
        np.savez(options.save, **device.carried)


def show(step: int, accuracy: list[float], losses: np.ndarray | None = None) -> None:
    """One line: the test accuracy of every layer, and the losses of the last batch."""
    shares = " ".join(f"{100 * share:6.2f}" for share in accuracy)
    loss = "" if losses is None else "  loss " + " ".join(f"{v:.4f}" for v in losses)
    print(f"step {step:4d}  test accuracy % {shares}{loss}")


if __name__ == "__main__":
    main()
