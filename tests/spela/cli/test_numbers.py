"""Numbers that mean nothing to float32 weights are refused: by commands, settings and optimizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spela.experiments import make_config
from spela.optim import LocalAdam, LocalSGD

Call = Callable[..., tuple[int, str, str]]
POSITIVE = ("lr", "scale", "conv_scale", "projection_std")
NOT_NEGATIVE = ("weight_decay", "negative_slope", "noise", "lr_drop")
SHARES = ("momentum", "dropout", "input_dropout", "label_noise", "test_share")
WRONG = {
    **dict.fromkeys(POSITIVE, ("nan", "inf", "-inf", "-1", "0", "1e39", "1e-60")),
    **dict.fromkeys(NOT_NEGATIVE, ("nan", "inf", "-inf", "-1", "1e39")),
    **dict.fromkeys(SHARES, ("nan", "inf", "-inf", "-0.1", "1", "2")),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings(name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=rf"^{name} must be"):
            make_config("digits", **{name: float(value)})


@pytest.mark.parametrize(
    "name", sorted(set(WRONG) - {"lr_drop", "input_dropout", "label_noise", "test_share"})
)
def test_options(name: str, call: Call) -> None:
    option = f"--{name.replace('_', '-')}"
    for value in WRONG[name]:
        code, _, error = call("train", "--data", "digits", "--out", "new", f"{option}={value}")
        assert (code, error.startswith(f"spela: error: {name} must be")) == (2, True), error
        assert not Path("new").exists()


@pytest.mark.parametrize("value", ["inf", "nan", "0", "1e12"])
def test_the_patience_with_other_processes(value: str, call: Call) -> None:
    code, _, error = call("train", "--data", "digits", "--out", "new", "--rank-timeout", value)
    assert code == 2
    assert "'--rank-timeout'" in error


@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
def test_the_overhead_of_a_launch(value: str, call: Call) -> None:
    code, _, error = call("bench", "--model", "--launch-us", value)
    assert code == 2
    assert "'--launch-us'" in error


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (LocalSGD, "lr", (NAN, INF, 1e39, -1.0, torch.tensor(NAN), torch.tensor(INF))),
        (LocalSGD, "momentum", (NAN, INF, -0.1, 1.0, 2.0)),
        (LocalSGD, "weight_decay", (NAN, INF, 1e39, -1.0)),
        (LocalAdam, "lr", (NAN, INF, 1e39, -1.0, torch.tensor(NAN))),
        (LocalAdam, "betas", ((NAN, 0.9), (0.9, NAN), (1.0, 0.9), (0.9, 1.0), (-0.1, 0.9))),
        (LocalAdam, "eps", (NAN, INF, -1.0)),
        (LocalAdam, "weight_decay", (NAN, INF, -1.0)),
    ],
)
def test_optimizers(kind: Any, name: str, values: tuple[Any, ...]) -> None:
    layer = torch.nn.Linear(3, 2)
    for value in values:
        with pytest.raises(ValueError, match=r"must be in|[Ii]nvalid"):
            kind(layer.parameters(), **{name: value})
        with pytest.raises(ValueError, match=r"must be in|[Ii]nvalid"):  # a group's own
            kind([{"params": layer.parameters(), name: value}])
        optimizer = kind([layer.weight])
        with pytest.raises(ValueError, match=r"must be in|[Ii]nvalid"):
            optimizer.add_param_group({"params": [layer.bias], name: value})
        assert len(optimizer.param_groups) == 1  # refused before it is held


def test_optimizers_keep_what_is_sound() -> None:
    layer = torch.nn.Linear(3, 2)
    rate = torch.tensor(0.5)
    optimizer = LocalSGD(layer.parameters(), lr=rate, momentum=0.99, weight_decay=0.0)
    assert optimizer.param_groups[0]["lr"] is rate
    assert LocalAdam(layer.parameters(), lr=0.0, betas=(0.0, 0.0)).defaults["lr"] == 0.0
