"""Options, variables SPELA_* and defaults: which counts, and that wrong ones leave no trace."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from spela_kernels import backend, environment
from spela_kernels.cpu import gemm, gemm_choice

COMMANDS = {
    "demo": ["--out", "new"],
    "train": ["--data", "digits", "--layers", "8", "--epochs", "1", "--out", "new"],
    "evaluate": ["run"],
    "predict": ["run", "x.npy"],
    "export": ["run", "--out", "new"],
    "reproduce": ["mlp", "--quick", "--out", "new"],
    "features": ["--data", "digits", "--out", "new"],
    "bench": ["--quick", "--json", "new"],
    "info": [],
}
WRONG = {
    "SPELA_BACKEND": ("garbage", "unknown back-end 'garbage' in SPELA_BACKEND: use one of auto"),
    "SPELA_CPU_GEMM": ("garbage", "unknown library 'garbage' in SPELA_CPU_GEMM: use one of auto"),
    "SPELA_DATA_ROOT": ("file", "SPELA_DATA_ROOT is 'file', which is a file: name a folder"),
    "SPELA_CACHE_DIR": ("file", "SPELA_CACHE_DIR is 'file', which is a file: name a folder"),
}

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("variable", WRONG)
def test_a_wrong_variable_is_refused_before_any_file(
    command: str, variable: str, call: Call
) -> None:
    value, message = WRONG[variable]
    code, shown, error = call(command, *COMMANDS[command], **{variable: value})
    assert code == 2
    assert shown == ""
    assert error.startswith(f"spela: error: {message}")
    assert error.count("\n") == 1
    assert os.listdir() == ["file"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_back_end_that_cannot_run_on_the_device_is_refused(command: str, call: Call) -> None:
    if "triton" in backend.available_backends("cpu"):
        pytest.skip("Triton's interpreter is on: it can")
    chosen = [*COMMANDS[command], *(["--device", "cpu"] if command == "train" else [])]
    code, _, error = call(command, *chosen, SPELA_BACKEND="triton")
    if command in ("info", "evaluate", "predict", "features") and code == 0:
        pytest.skip("there is a GPU that can")
    assert (code, error.split(":")[2]) == (2, " back-end 'triton' cannot run on device 'cpu'")
    assert os.listdir() == ["file"]


@pytest.mark.parametrize(
    ("options", "variable", "expected"),
    [
        ([], "", "cpu"),
        ([], "reference", "reference"),
        (["--backend", "cpu"], "reference", "cpu"),
        (["--backend", "auto"], "reference", "cpu"),
        (["--backend", "reference"], "triton", "reference"),
    ],
)
def test_an_option_counts_before_its_variable(
    options: list[str], variable: str, expected: str, call: Call
) -> None:
    code, _, error = call(
        "train", *COMMANDS["train"], "--device", "cpu", *options, SPELA_BACKEND=variable
    )
    assert code == 0, error
    assert json.loads(Path("new/summary.json").read_text())["backend"] == expected


def test_info_says_what_holds_and_why(call: Call, tmp_path: Path) -> None:
    _, shown, _ = call("info", SPELA_CACHE_DIR="")
    assert "in force: cpu (default; SPELA_BACKEND is not set)" in shown
    assert f"{Path('~/.cache/spela/data').expanduser()} (default; SPELA_DATA_ROOT" in shown
    code, shown, _ = call(
        "info",
        SPELA_BACKEND="reference",
        SPELA_CPU_GEMM="blas",
        SPELA_DATA_ROOT="~/data",
        SPELA_CACHE_DIR="~/kept",
    )
    assert code == 0
    assert "in force: reference (SPELA_BACKEND)" in shown
    assert "products of the CPU back-end: blas (SPELA_CPU_GEMM)" in shown
    assert f"measured choices: {Path('~/kept').expanduser()} (SPELA_CACHE_DIR)" in shown
    assert f"data root: {Path('~/data').expanduser()} (SPELA_DATA_ROOT)" in shown
    Path("here").mkdir()
    _, shown, _ = call("info", "--data-root", "here", SPELA_DATA_ROOT="there")
    assert "data root: here (--data-root)\n" in shown
    _, shown, _ = call("info", "--data-root", "mistyped")
    assert "data root: mistyped (--data-root), not there yet" in shown


def test_a_mistyped_variable_is_said_once(call: Call, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert call("info", SPELA_BAKEND="reference", SPELA_X="1")[0] == 0
    found = [r.getMessage() for r in caplog.records if "is not read" in r.getMessage()]
    assert found == [
        "spela: the environment variable SPELA_BAKEND is not read: did you mean SPELA_BACKEND?",
        "spela: the environment variable SPELA_X is not read: known are "
        + ", ".join(environment.VARIABLES),
    ]


def test_a_library_that_is_not_here_is_refused(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "onednn_works", lambda: False)
    code, _, error = call("info", SPELA_CPU_GEMM="onednn")
    assert code == 2
    assert "SPELA_CPU_GEMM is 'onednn', which cannot make products here" in error
    gemm.libraries_here.cache_clear()
    gemm_choice.pinned_library.cache_clear()
    monkeypatch.setenv("SPELA_CPU_GEMM", "onednn")
    with pytest.raises(ValueError, match="cannot make products here"):  # a library user's first use
        gemm.linear(torch.ones(8, 8), torch.ones(8, 8), None, "identity", 0.0)


@pytest.mark.parametrize("number", ["100000", "0", "-1"])
@pytest.mark.parametrize("command", ["demo", "train", "evaluate", "predict", "features", "bench"])
def test_threads_are_what_the_machine_can_start(command: str, number: str, call: Call) -> None:
    code, _, error = call(command, *COMMANDS[command], "--threads", number)
    most = 4 * (os.cpu_count() or 1)
    assert (code, error.count("\n")) == (2, 1)
    assert f"--threads must be in 1..{most} (four for each" in error
    assert f"got {number}" in error
    assert os.listdir() == ["file"]


@pytest.mark.parametrize("number", ["100000", "0"])
def test_jobs_are_what_the_machine_can_start(number: str, call: Call) -> None:
    code, _, error = call("reproduce", *COMMANDS["reproduce"], "--jobs", number)
    assert code == 2
    assert "--jobs must be in 1.." in error
    assert os.listdir() == ["file"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--out", ""],
        ["train", "--data", "digits", "--out", ""],
        ["train", "--data", "digits", "--out="],
        ["train", "--data", "digits", "--out", "new", "--data-root", ""],
        ["evaluate", ""],
        ["predict", "", "x.npy"],
        ["predict", "run", ""],
        ["export", "run", "--out", ""],
        ["info", ""],
        ["info", "run", "--card", "--out", ""],
        ["features", "--out", ""],
        ["bench", "--model", "--json", ""],
        ["reproduce", "mlp", "--quick", "--out", ""],
        ["reproduce", "mlp", "--quick", "--readme", ""],
        ["reproduce", "mlp", "--quick", "--publish", ""],
    ],
)
def test_an_empty_path_is_not_the_current_folder(arguments: list[str], call: Call) -> None:
    code, _, error = call(*arguments)
    assert code == 2
    assert error.endswith("it is empty: name a folder or file\n")
    assert os.listdir() == ["file"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--data", "", "--out", "new"],
        ["features", "--data", "", "--out", "new"],
        ["evaluate", "run", "--data", ""],
    ],
)
def test_an_empty_name_is_no_data(arguments: list[str], call: Call) -> None:
    code, _, error = call(*arguments)
    assert code == 2
    assert error.endswith("'--data': it is empty: name one, or leave the option out\n")
    assert os.listdir() == ["file"]


def test_the_home_of_nobody_is_no_traceback(call: Call) -> None:
    call("train", "--data", "digits", "--layers", "8", "--epochs", "1", "--out", "run")
    for arguments in (
        ["train", "--data", "~nobody-here/x.npz", "--out", "new"],
        ["predict", "run", "~nobody-here/x.npz"],
        ["predict", "run", "~nobody-here/x.png"],
        ["evaluate", "run", "--data", "~nobody-here/x.npz"],
    ):
        code, _, error = call(*arguments)
        assert (code, error.count("\n")) == (2, 1), error
        assert "~nobody-here/x" in error
    assert sorted(os.listdir()) == ["file", "run"]
    assert call("info", "--data-root", "~nobody-here/x")[0] == 0


def test_a_path_may_start_at_home(call: Call, tmp_path: Path) -> None:
    options = [*COMMANDS["train"][:-2], "--out=~/run"]
    code, shown, error = call("train", *options, HOME=str(tmp_path / "home"))
    assert code == 0, error
    assert f"run folder: {tmp_path / 'home' / 'run'}\n" in shown
    assert sorted(os.listdir()) == ["file", "home"]


def test_weights_that_are_not_finite_answer_nothing(call: Call) -> None:
    """A loss is looked at before its update, so the last update may leave infinite weights."""
    np.savez("x.npz", x=np.eye(6, dtype=np.float32), y=np.arange(6) % 2)
    train = ["train", "--data", "x.npz", "--recipe", "backprop", "--layers", "8", "--epochs", "1"]
    assert call(*train, "--lr", "3e38", "--out", "run")[0] == 0
    for command in (["predict", "run", "x.npz"], ["evaluate", "run"]):
        for form in ([], ["--json"]):
            code, shown, error = call(*command, *form)
            assert (code, shown) == (2, "")
            assert "the weights in run are not finite" in error
            assert "lower --lr" in error


TRAIN = ["train", "--data", "digits", "--out", "new"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["bench", "--dtype", "float16"], "--dtype"),
        (["bench", "--gpu", "H100"], "--gpu"),
        (["bench", "--launch-us", "3"], "--launch-us"),
        (["bench", "--model", "--quick"], "--quick"),
        (["bench", "--model", "--threads", "1"], "--threads"),
        (["bench", "--model", "epoch"], "epoch"),
        (["export", ".", "--out", "new.pt2", "--opset", "20"], "--opset"),
        (["info", ".", "--data-root", "."], "--data-root"),
        ([*TRAIN, "--rank-timeout", "5"], "--rank-timeout"),
        ([*TRAIN, "--momentum", "0.5"], "momentum"),
        ([*TRAIN, "--kernel-size", "3"], "kernel_size"),
        ([*TRAIN, "--recipe", "backprop", "--objective", "cosine"], "objective"),
        ([*TRAIN, "--model", "cnn", "--channels", "4", "--scale", "5"], "scale"),
    ],
)
def test_options_that_would_change_nothing_are_refused(
    arguments: list[str], named: str, call: Call
) -> None:
    code, shown, error = call(*arguments)
    assert (code, shown, error.count("\n")) == (2, "", 1)
    assert named in error
    assert error.endswith("leave it out\n") or f"leave {named} out" in error
    assert os.listdir() == ["file"]


def test_a_folder_cannot_take_the_benchmark_s_figures(call: Call) -> None:
    code, shown, error = call("bench", "--json", ".")
    assert (code, shown, error) == (2, "", "spela: error: --json . is a folder: name a file\n")
