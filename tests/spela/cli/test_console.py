"""What a console shows: names that its encoding lacks, Ctrl-C, a full disk, words that are true."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import spela.reports.run
from spela.cli.console import printing_anywhere
from spela.cli.progress import ProgressBar
from spela.reports.cells import change_text
from tests.spela.stopping import stopped

Call = Callable[..., tuple[int, str, str]]
NAMES = "零一二三四五六七八九"


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_names_outside_the_console_s_encoding_are_escaped(
    encoding: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = load_digits()
    x = (digits.images * 15.9).astype(np.uint8)
    np.savez("名.npz", x=x, y=digits.target, class_names=np.array(list(NAMES)))
    shown: dict[str, str] = {}
    for command in (
        ["train", "--data", "名.npz", "--layers", "16", "--epochs", "1", "--out", "名"],
        ["predict", "名", "名.npz"],
        ["evaluate", "名"],
        ["info", "名"],
        ["info", "名", "--card"],
        ["info", "名", "--card", "--out", "名.md"],
        ["export", "名", "--out", "名.none"],
    ):
        with monkeypatch.context() as patch:
            console, errors = (
                io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
                for _ in range(2)
            )
            patch.setattr(sys, "stdout", console)
            patch.setattr(sys, "stderr", errors)
            code, _, _ = call(*command)
        wrong = errors.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert code == (2 if command[0] == "export" else 0), wrong
        assert console.errors == "strict"
        shown[" ".join(command)] = console.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]

    def seen(text: str) -> str:
        return text.encode(encoding, "backslashreplace").decode(encoding)

    lines = shown["predict 名 名.npz"].splitlines()
    assert len(lines) == 1 + len(x)
    assert {line.split("\t")[2] for line in lines[1:]} <= {seen(name) for name in NAMES}
    assert seen("零") in shown["info 名"]
    assert seen("零") in shown["info 名 --card"]
    assert (
        f"run folder: {seen('名')}" in shown["train --data 名.npz --layers 16 --epochs 1 --out 名"]
    )
    # Files are UTF-8 whatever the console is.
    assert "零" in Path("名.md").read_text(encoding="utf-8")
    assert "名" in Path("名/report.html").read_text(encoding="utf-8")


def test_a_stream_that_is_no_text_file_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with printing_anywhere():
        print("零")
    assert stream.getvalue() == "零\n"


def _piped(monkeypatch: pytest.MonkeyPatch, name: str = "stdout") -> int:
    """Print into a pipe; the end that is read."""
    read, written = os.pipe()
    monkeypatch.setattr(sys, name, open(written, "w", encoding="ascii"))  # noqa: SIM115
    return read


def test_a_pipe_that_is_read_has_every_character(monkeypatch: pytest.MonkeyPatch) -> None:
    read = _piped(monkeypatch)
    with printing_anywhere():
        print("first 零")
        print("last")
    print("afterwards", flush=True)
    assert os.read(read, 100) == b"first \\u96f6\nlast\nafterwards\n"
    os.close(read)
    sys.stdout.close()


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_pipe_that_nobody_reads_any_more_stops_nothing(
    name: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.close(_piped(monkeypatch, name))
    train = ["train", "--data", "digits", "--layers", "8", "--epochs", "1", "--out", "run"]
    assert call(*train)[0] == 0
    assert Path("run/report.html").exists()
    assert call("info", "run")[0] == 0
    assert call("info", "nowhere")[0] == 2
    getattr(sys, name).close()


@pytest.mark.parametrize("arguments", [("--help",), ("info", "--help"), ("train", "nonsense")])
def test_a_reader_that_leaves_changes_no_exit_code(arguments: tuple[str, ...]) -> None:
    read, written = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "spela", *arguments]
    done = subprocess.run(command, stdout=written, stderr=subprocess.PIPE, text=True, check=False)
    os.close(written)
    wrong = "nonsense" in arguments
    assert done.returncode == (2 if wrong else 0)
    assert done.stderr.startswith("spela: error: ") if wrong else done.stderr == ""


@pytest.mark.parametrize("module", ["spela", "spela.cli"])
def test_ctrl_c_during_the_imports(module: str, tmp_path: Path) -> None:
    def loads_torch(pid: int) -> bool:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")

    code, error = stopped([sys.executable, "-m", module, "info"], loads_torch, cwd=tmp_path)
    assert (code, error) == (130, "stopped\n")


def test_ctrl_c_in_reproduce_says_how_to_go_on(tmp_path: Path) -> None:
    code, error = stopped(
        [sys.executable, "-m", "spela", "reproduce", "mlp", "--quick", "--out", "out"],
        lambda _: any(tmp_path.glob("out/quick/runs/*/config.json")),
        cwd=tmp_path,
    )
    assert (code, error) == (130, "stopped, the same command goes on\n")


def test_ctrl_c_while_workers_import(tmp_path: Path) -> None:
    def is_importing(process: Path, parent: int) -> bool:
        try:
            stat = (process / "stat").read_text(encoding="utf-8", errors="replace")
            spawned = b"spawn_main" in (process / "cmdline").read_bytes()
            is_child = stat.rsplit(")")[-1].split()[1] == str(parent)
            return is_child and spawned and "libtorch" in (process / "maps").read_text()
        except OSError:  # it ended in between
            return False

    def import_torch(pid: int) -> bool:
        return sum(is_importing(process, pid) for process in Path("/proc").glob("[0-9]*")) == 2

    # Ctrl-C reaches the whole group.
    command = ["spela", "reproduce", "mlp", "--quick", "--jobs", "2", "--out", "out"]
    code, error = stopped(
        [sys.executable, "-m", *command],
        import_torch,
        send=os.killpg,
        cwd=tmp_path,
        start_new_session=True,
    )
    assert (code, error) == (130, "stopped, the same command goes on\n")


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (["bench", "--quick"], "spela.benchmarks.run_groups"),
        (["features", "--data", "digits"], "spela.data.load_images"),
        (["train", "--data", "digits", "--out", "new"], "spela.experiments.load_data"),
        (["info"], "spela.data.dataset_names"),
    ],
)
def test_ctrl_c_elsewhere_promises_nothing(
    command: list[str], place: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)
    code, _, error = call(*command)
    assert (code, error) == (130, "stopped\n")


def test_a_disk_that_fills_at_the_report_leaves_the_results(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ["train", "--data", "digits", "--layers", "8", "--epochs", "1", "--out", "run"]

    def full(path: Path, content: bytes) -> None:
        raise OSError(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(spela.reports.run, "write_atomically", full)
        code, shown, error = call(*train)
    assert code == 2
    assert "layer 1: " in shown
    assert "run folder: run" in shown
    assert error == (
        "spela: error: the run is finished and safe, its report is not written (cannot write "
        f"{Path('run/plots/accuracy.png')}: No space left on device): once it can be, the same "
        "settings with --resume write it\n"
    )
    assert not Path("run/report.html").exists()
    assert call(*train, "--resume")[0] == 0
    assert Path("run/report.html").exists()


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.227, "22.7 % saved"),
        (-0.227, "22.7 % more"),
        (-0.0004, "0.0 % saved"),
        (0.0, "0.0 % saved"),
    ],
)
def test_the_word_follows_the_sign(share: float, text: str) -> None:
    assert change_text(share, "saved", "more", 1) == text


def test_early_exit_that_costs_time_says_so(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    train = ["train", "--data", "digits", "--layers", "8,8", "--epochs", "1", "--out", "run"]
    assert call(*train)[0] == 0
    monkeypatch.setattr(
        "spela.training.early_exit._seconds",
        lambda net, batches, policy: 1.0 if policy is None else 3.0,
    )
    _, shown, _ = call("evaluate", "run", "--exit-loss", "0")
    (line,) = [line for line in shown.splitlines() if "wall time" in line]
    assert line.endswith(": 6000.0 ms of 2000.0 ms, 200 % more")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "run", "nothere"], "nothere does not exist: give an image, a folder"),
        (["train", "--layers", "1"], "layers 1 has no direction to turn: use 2 or more"),
        (
            [
                "train",
                "--model",
                "cnn",
                "--channels",
                "4",
                "--kernel-size",
                "3",
                "--symmetric-dim",
                "1",
            ],
            "symmetric_dim 1 has no direction to turn",
        ),
        (
            ["train", "--layers", "1", "--vectors", "gaussian"],
            "layers 1 has no direction to turn: use 2 or more",
        ),
    ],
)
def test_messages_speak_of_what_the_user_gave(
    arguments: list[str], message: str, call: Call
) -> None:
    train = ["train", "--data", "digits", "--epochs", "1", "--out", "run", "--layers", "8"]
    if arguments[0] == "predict":
        assert call(*train)[0] == 0
    else:
        arguments = [*arguments, *train[1:5], "--out", "new"]
    code, _, error = call(*arguments)
    assert (code, error.startswith(f"spela: error: {message}")) == (2, True), error
    assert not Path("new").exists()


def test_bar_and_curves_are_closed_where_a_run_breaks_off(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    class Curves(ProgressBar):  # needs no package tensorboard
        def close(self) -> None:
            closed.append("curves")

    def note(bar: ProgressBar) -> None:
        closed.append("bar")

    monkeypatch.setattr("spela.cli.running.TensorBoardListener", lambda folder: Curves())
    monkeypatch.setattr(ProgressBar, "close", note)
    train = [
        "train",
        "--data",
        "digits",
        "--recipe",
        "backprop-sgd",
        "--lr",
        "1e30",
        "--layers",
        "8",
    ]
    code, _, error = call(*train, "--tensorboard", "--out", "run")
    assert (code, "start again with a lower --lr" in error) == (2, True)
    assert sorted(closed) == ["bar", "curves"]


def test_a_closed_stream_ends_no_training(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell's `2>&-` leaves no stream at all."""
    training = ("train", "--data", "digits", "--layers", "6", "--epochs", "1", "--out", "run")
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    code, _, _ = call(*training)
    assert (sys.stdout, sys.stderr) == (None, None)
    assert code == 0
    assert Path("run/summary.json").exists()


def test_a_fault_of_the_program_keeps_its_traceback(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise kind("'NoneType' object is not iterable")

    monkeypatch.setattr("spela.cli.commands.app", broken)
    kind: type[Exception] = TypeError
    with pytest.raises(TypeError):
        call("info")
    kind = ValueError
    code, out, error = call("info")
    assert (code, out) == (2, "")
    assert error == "spela: error: 'NoneType' object is not iterable\n"


def test_digits_of_scikit_learn_s_own_range_are_refused_with_what_to_do(call: Call) -> None:
    train = ["train", "--data", "digits", "--layers", "16", "--epochs", "1", "--standardize"]
    assert call(*train, "--out", "run")[0] == 0
    digits = load_digits()
    np.save("floats.npy", digits.data.astype(np.float32))
    np.save("pixels.npy", digits.images.astype(np.uint8))
    for file in ("floats.npy", "pixels.npy"):
        code, out, error = call("predict", "run", file)
        assert (code, out) == (2, "")
        assert f"{file} holds values up to 16" in error
        assert "digits from 0 to 1: divide scikit-learn's by 16" in error
    np.save("scaled.npy", (digits.data / 16).astype(np.float32))
    np.save("bright.npy", (digits.images * 15.9).astype(np.uint8))
    shown = [call("predict", "run", file)[1] for file in ("scaled.npy", "bright.npy")]
    labels = [[line.split("\t")[1] for line in lines.splitlines()[1:]] for lines in shown]
    assert len(labels[0]) == len(digits.target)
    assert np.mean(np.array(labels[0]) == np.array(labels[1])) > 0.95


def test_a_label_that_is_none_is_named_by_its_place_in_the_file(call: Call) -> None:
    np.savez("own.npz", x=np.eye(30, dtype=np.float32), y=np.arange(30) % 3, class_names=["a", "b"])
    code, _, error = call("train", "--data", "own.npz", "--layers", "8", "--out", "run")
    assert code == 2
    assert "own.npz: y must be in 0..1, one of the 2 classes, but that of sample 2 is 2" in error
