"""Parts `training` and `training-cpu`: the same short runs on the GPU and on the CPU, and their accuracy."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.gpu.rows import Rows, read_rows
from bench.gpu.setting import Setting
from spela.data import Dataset, is_available, load_dataset
from spela.experiments import make_config, run

__all__ = ["RUNS", "Run", "on_the_cpu", "on_the_gpu"]


class Run(NamedTuple):
    """A run of the table; `samples` bounds the training images, so that a CPU is done in time."""

    name: str
    model: str
    recipe: str
    epochs: int
    samples: int | None
    settings: dict[str, Any]


RUNS = (
    Run("best", "mlp", "best", 2, None, {}),
    Run("best, bf16", "mlp", "best", 2, None, {"precision": "bf16"}),
    Run("tmlr", "mlp", "tmlr", 2, None, {}),
    Run("cnn", "cnn", "cnn", 1, 12_000, {}),
    Run("cnn best", "cnn", "best", 1, 12_000, {}),
    Run("vgg in 3 blocks", "vgg", "best", 1, 12_000, {"blocks": "3", "width": 16}),
    Run("backprop", "mlp", "backprop", 2, None, {}),
)
_DRY: dict[str, dict[str, Any]] = {
    "mlp": {"layers": (8, 8)},
    "cnn": {"channels": (2,)},
    "vgg": {"width": 2, "head_hidden": 4, "projection": 4},
}


def _data(rows: Rows, setting: Setting) -> Dataset:
    """Fashion-MNIST where it is at hand; nothing is downloaded."""
    if is_available("fashion-mnist", setting.data_root):
        return load_dataset("fashion-mnist", setting.data_root, download=False)
    rows.note(
        "Fashion-MNIST is not at hand (--data-root names its folder): digits, 24 x 24, instead."
    )
    data = load_dataset("digits")
    train, test = (
        x.repeat_interleave(3, 2).repeat_interleave(3, 3) for x in (data.train_x, data.test_x)
    )
    return replace(data, train_x=train, test_x=test)


def _measure(rows: Rows, setting: Setting, device: str) -> None:
    whole, known = _data(rows, setting), _accuracies(setting)
    for run_ in RUNS:
        try:
            _train(rows, setting, run_, whole, device, known.get(run_.name))
        except Exception as error:  # whatever a GPU raises belongs in the report
            rows.failed("training", error, run=run_.name)


def _train(
    rows: Rows, setting: Setting, run_: Run, whole: Dataset, device: str, known: list[float] | None
) -> None:
    samples = setting.pick(run_.samples, 16)
    data = whole if samples is None else whole.subset(train=min(samples, len(whole.train_y)))
    data = data.subset(test=setting.pick(len(data.test_y), 10))
    settings = run_.settings | setting.pick({}, _DRY[run_.model])
    epochs = setting.pick(run_.epochs, 1)
    config = make_config(data.name, run_.recipe, model=run_.model, epochs=epochs, **settings)
    with tempfile.TemporaryDirectory() as folder:
        summary = run(config, data, Path(folder) / "run", device=device)
    accuracy = [100 * share for share in summary["test_accuracy"]]
    cells: dict[str, Any] = {
        "run": run_.name,
        "data": f"{len(data.train_y):,} of {data.name}",
        "epochs": config.total_epochs,
        "accuracy": " ".join(f"{value:.2f}" for value in accuracy),
    }
    if known is not None:
        cells["minus_cpu"] = " ".join(f"{a - b:+.2f}" for a, b in zip(accuracy, known, strict=True))
    rows.add(
        "training", **cells, seconds_per_epoch=summary["seconds_per_epoch"],
        peak_mb=(summary["peak_memory_bytes"] or 0) / 1e6, backend=summary["backend"],
    )  # fmt: skip


def _accuracies(setting: Setting) -> dict[str, list[float]]:
    """What the part on the CPU has left, where it ran before."""
    found = read_rows(setting.folder / "training-cpu.jsonl")
    return {
        row["run"]: [float(word) for word in row["accuracy"].split()]
        for row in found
        if row.get("table") == "training" and "accuracy" in row
    }


def on_the_gpu(rows: Rows, setting: Setting) -> None:
    """The runs on the GPU, with the differences to the CPU's accuracy."""
    _measure(rows, setting, setting.device)


def on_the_cpu(rows: Rows, setting: Setting) -> None:
    """The runs on a quarter of the CPU's cores, beside the tests."""
    torch.set_num_threads(setting.pick(max(1, (os.cpu_count() or 1) // 4), 1))
    _measure(rows, setting, "cpu")
