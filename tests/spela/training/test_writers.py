"""Two writers of one folder, killed writers, modes of files, and the same bytes from the same run."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from spela.cli import main
from spela.data import Dataset
from spela.experiments import make_config, run
from spela.experiments.declare import Experiment, Row
from spela.experiments.plan import Options, plan
from spela.experiments.reproduce import rebuild, reproduce
from spela.experiments.runner import run_folder, run_jobs
from spela.features import save_features
from spela.files.atomic import write_atomically
from spela.training import InUseError, RunFolder

TRAIN = ("train", "--data", "digits", "--layers", "16,12", "--epochs", "2")
CONFIG = make_config("little", "best", 1, layers=(6,), epochs=1, batch_size=8)


@pytest.fixture(scope="module")
def data() -> Dataset:
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(20, 5, generator=g), torch.arange(20) % 2
    return Dataset("little", x, y, x.clone(), y.clone(), 2, ("a", "b"))


def _files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


_HOLD = """
import sys, time
from spela.training import RunFolder
with RunFolder(sys.argv[1]).writing():
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def _held_elsewhere(folder: Path) -> Iterator[subprocess.Popen]:
    """Another process that writes to a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def _spela(*arguments: object) -> int:
    """The exit code of a command, called in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["spela", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


def test_a_second_writer_gets_one_line_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert _spela(*TRAIN, "--out", out) == 0
    capsys.readouterr()
    before = _files(out)
    new = tmp_path / "new"
    with _held_elsewhere(out), _held_elsewhere(new):
        for folder, more in (
            (out, ["--resume"]),
            (out, ["--resume", *(["--tensorboard"] if find_spec("tensorboard") else [])]),
            (out, ["--resume", "--epochs", "3"]),
            (new, []),
        ):
            assert _spela(*TRAIN, "--out", folder, *more) == 2
            assert capsys.readouterr().err == (
                f"spela: error: another process is writing to {folder}: wait until it ends, or choose "
                "another --out\n"
            )
        assert _files(out) == before
        assert _files(new) == {}
    # Both were killed: the system has let go, and what lies there is no run.
    assert (new / ".lock").exists()
    assert _spela(*TRAIN, "--out", out, "--resume") == 0
    assert _spela(*TRAIN, "--out", new) == 0


def test_a_killed_writer_holds_nothing_and_its_half_files_go(data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with _held_elsewhere(out) as process:
        for resume in (False, True):
            with pytest.raises(InUseError, match="another process is writing to"):
                run(CONFIG, data, out, resume=resume)
        assert _files(out) == {}
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (out / ".lock").exists()  # left behind, and it means nothing
        assert not RunFolder(out).holds_run()
        (out / ".checkpoint.safetensors.123-abcdef01.tmp").write_bytes(b"half")
        (out / ".mine.tmp").write_bytes(b"not ours")
        run(CONFIG, data, out)
    assert sorted(path.name for path in out.glob(".*")) == [".lock", ".mine.tmp"]
    assert run(CONFIG, data, out, resume=True)["epochs"] == 1


def test_another_thread_is_another_writer_and_the_same_one_is_not(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    folder = RunFolder(tmp_path / "run")

    def enter() -> str:
        with folder.writing():
            return "in"

    with folder.writing(), ThreadPoolExecutor(1) as pool:
        assert enter() == "in"
        with pytest.raises(InUseError):
            pool.submit(enter).result()
    assert not folder.path.exists()  # nothing was written


def test_a_start_that_fails_leaves_no_folder(data: Dataset, tmp_path: Path) -> None:
    config = make_config("x", "best", 0, model="cnn", channels=(2,), epochs=1)
    with pytest.raises(ValueError, match="convolutions need images"):
        run(config, data, tmp_path / "a" / "b")  # features are no images
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said_and_works(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    run(CONFIG, data, tmp_path / "run")
    assert f"{tmp_path / 'run'} is on a file system without locks" in caplog.text
    monkeypatch.undo()
    assert run(CONFIG, data, tmp_path / "run", resume=True)["epochs"] == 1


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX")
def test_a_folder_that_cannot_be_written_to_is_one_line(data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(CONFIG, data, out)
    (out / ".lock").unlink()
    modes = {out: out.stat().st_mode}
    if os.geteuid() == 0:  # the other user that root becomes has to come as far as the folder
        modes |= {
            path: path.stat().st_mode
            for path in (tmp_path, *tmp_path.parents)
            if path.stat().st_mode & 0o055 != 0o055
        }
    code = """
import os, sys
from spela.training import RunFolder
from spela.experiments import load_run
if os.geteuid() == 0:
    os.setuid(65534)
print(load_run(sys.argv[1]).checkpoint.epoch)
try:
    with RunFolder(sys.argv[1]).writing():
        print("in")
except OSError as error:
    print(error)
"""
    try:
        for path, mode in modes.items():
            path.chmod(0o555 if path == out else mode | 0o055)
        shown = subprocess.run(
            [sys.executable, "-c", code, str(out)], capture_output=True, text=True, timeout=120
        )
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert shown.stdout == f"1\ncannot write to {out}: Permission denied\n", shown.stderr


EXPERIMENT = Experiment(
    "mlp",
    "A test",
    ("digits",),
    tuple(
        Row(name, "best", settings={"layers": (size,), "epochs": 1})
        for name, size in (("small", 6), ("large", 8))
    ),
)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_another_process_writes_is_left_and_the_others_are_done(
    processes: int, tmp_path: Path
) -> None:
    options = Options(tmp_path, seeds=(0,))
    small, large = plan(EXPERIMENT, options)
    folder = run_folder(options, small.key)
    with _held_elsewhere(folder.path):
        outcomes = run_jobs([small, large], options, processes)
        assert [outcomes[job.key].status for job in (small, large)] == ["busy", "done"]
        assert f"another process is writing to {folder.path}" in outcomes[small.key].error
        assert _files(folder.path) == {}
    assert run_jobs([small, large], options)[small.key].status == "done"


def test_two_reproduce_into_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(tmp_path, seeds=(0,))
    reproduce(EXPERIMENT, options)
    before = _files(tmp_path)
    with _held_elsewhere(tmp_path):
        for call in (reproduce, rebuild):
            with pytest.raises(InUseError, match="another `spela reproduce` is writing to"):
                call(EXPERIMENT, options)
        for more in ([], ["--report-only"]):
            assert _spela("reproduce", "mlp", "--data", "digits", "--out", tmp_path, *more) == 2
            assert capsys.readouterr().err == (
                f"spela: error: another `spela reproduce` is writing to {tmp_path}: wait for it, or choose "
                "another --out\n"
            )
        assert _files(tmp_path) == before


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(umask: int, data: Dataset, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        run(CONFIG, data, tmp_path / "run")
        save_features(tmp_path / "f.safetensors", data, {"name": "x"})
    finally:
        os.umask(before)
    files = [*(tmp_path / "run").glob("*.*"), tmp_path / "f.safetensors"]
    assert len(files) >= 5
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path
    own = tmp_path / "own"
    own.touch(mode=0o600)
    write_atomically(own, lambda name: Path(name).write_text("x"))
    assert stat.S_IMODE(own.stat().st_mode) == 0o600


def test_two_identical_runs_leave_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files, apart from times: seconds in records and summary, and the report's page that shows them."""
    cnn = ["--model", "cnn", "--channels", "3", "--kernel-size", "3", "--epochs", "1"]
    for parent in ("first", "second"):
        (tmp_path / parent).mkdir()
        monkeypatch.chdir(tmp_path / parent)
        assert _spela(*TRAIN, "--layers", "12", "--diagnostics", "--out", "run") == 0
        assert _spela("train", "--data", "digits", *cnn, "--out", "cnn") == 0
        assert _spela("info", "run", "--card", "--out", "run/card.md") == 0
        for what in ("inference", "train-step"):
            assert _spela("export", "run", "--what", what, "--out", f"run/{what}.onnx") == 0
    first, second = (_timeless(tmp_path / name) for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert {"run/checkpoint.safetensors", "run/plots/accuracy.png", "cnn/summary.json"} <= set(
        first
    )
    for name, content in first.items():
        assert second[name] == content, name


def _timeless(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, content in _files(folder).items():
        if name.endswith((".jsonl", "summary.json")):
            texts = content.decode().splitlines() if name.endswith("l") else [content.decode()]
            held = [json.loads(text) for text in texts]
            times = ("seconds", "seconds_per_epoch")
            found[name] = [{k: v for k, v in one.items() if k not in times} for one in held]
        elif name.endswith("report.html"):
            text = content.decode()
            found[name] = text[text.index("<h2>Result") : text.index("<h2>Epochs")]
        else:
            found[name] = content
    return found


def test_a_checkpoint_is_the_same_bytes_every_time(data: Dataset, tmp_path: Path) -> None:
    for number in range(8):  # the library orders its texts anew every time
        run(CONFIG, data, tmp_path / str(number))
    contents = {path.read_bytes() for path in tmp_path.glob("*/checkpoint.safetensors")}
    assert len(contents) == 1


def test_a_run_from_python_leaves_other_files_alone(data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    (tmp_path / ".hidden").write_text("of another program")
    with pytest.raises(ValueError, match=r"holds report\.html and no run"):
        run(CONFIG, data, tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"
    assert not RunFolder(tmp_path).config.exists()
    (tmp_path / "report.html").unlink()
    assert run(CONFIG, data, tmp_path)["epochs"] == 1
