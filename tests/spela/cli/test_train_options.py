"""Every option of `spela train` reaches the run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from spela.cli import main

GIVEN: dict[str, dict[str, Any]] = {
    "mlp": {"layers": (8, 8), "objective": "softmax", "scale": 3.0, "activation": "leaky_relu",
            "negative_slope": 0.3, "init": "kaiming-normal", "bias_init": "uniform", "precision": "bf16",
            "dropout": 0.4, "optimizer": "sgd", "momentum": 0.5, "weight_decay": 0.2, "vectors": "gaussian",
            "normalize_input": "unit", "schedule": "constant", "shuffle": False, "noise": 0.25,
            "batch_size": 7, "lr": 0.02, "epochs": 3, "seed": 5},
    "cnn": {"channels": (4, 4), "kernel_size": 2, "symmetric_dim": 12, "projection_std": 0.5, "groups": "3",
            "share_groups": True, "conv_objective": "softmax", "conv_scale": 7.0, "resize": 12},
    "resnet": {"width": 4, "blocks": "2", "readout": 64, "head_channels": 5, "head_hidden": 12,
               "projection": 24, "similarity": 0.3, "head_weight_decay": 0.5, "augment": True},
}  # fmt: skip


@pytest.mark.parametrize("model", GIVEN)
def test_every_option_of_train_reaches_the_run(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Any] = []
    monkeypatch.setattr("spela.cli.running.train_run", lambda config, *_, **__: runs.append(config))
    call = ["spela", "train", "--data", "digits", "--model", model, "--out", str(tmp_path / "run")]
    for name, value in GIVEN[model].items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            call += [f"--{option}" if value else f"--no-{option}"]
        else:
            call += [
                f"--{option}",
                ",".join(map(str, value)) if isinstance(value, tuple) else str(value),
            ]
    monkeypatch.setattr(sys, "argv", call)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, None)
    (config,) = runs
    assert {name: getattr(config, name) for name in GIVEN[model]} == GIVEN[model]
