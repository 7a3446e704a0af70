"""The command line as a user calls it: real processes, wrong arguments, kill -9 and resume."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from spela.cli import main
from spela.data import load_dataset
from spela.experiments import load_run
from tests.spela.stopping import stopped

RUN = [sys.executable, "-c", "from spela.cli import main; main()"]
TRAIN = ["train", "--data", "digits", "--layers", "64,48", "--dropout", "0.1", "--seed", "3"]


def _spela(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A call in this process, which has imported what a process would import first."""
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as error,
    ):
        patch.setattr(sys, "argv", ["spela", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    code = int(stop.value.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), error.getvalue())


def _process(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*RUN, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,  # on a busy machine; a hang is longer
        **options,  # type: ignore[call-overload]
    )


def _fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line an in-process call prints on stderr before it exits with 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["spela", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("spela: error: ")
    assert error.count("\n") == 1
    return error


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    result = _process(*TRAIN, "--epochs", "4", "--lr", "0.01", "--out", out)
    assert result.returncode == 0, result.stderr
    assert "layer 2:" in result.stdout
    assert str(out / "report.html") in result.stdout
    return out


def test_summary_and_records(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert len(summary["test_accuracy"]) == len(summary["train_loss"]) == 2
    assert all(0.5 < a <= 1 for a in summary["test_accuracy"])
    assert summary["epochs"] == 4
    assert summary["seed"] == 3
    assert summary["seconds_per_epoch"] > 0
    assert summary["backend"] in ("reference", "cpu", "triton")
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records] == [1, 2, 3, 4]
    assert records[-1]["test_accuracy"] == summary["test_accuracy"]
    assert records[-1]["train_loss"][0] < records[0]["train_loss"][0]


def test_report_is_self_contained(trained: Path) -> None:
    page = (trained / "report.html").read_text()
    names = ("accuracy", "loss", "weight-norm", "confusion", "geometry-layer-1", "geometry-layer-2")
    assert page.count("data:image/png;base64,") == len(names) + 12  # test images
    assert "http" not in page
    for name in names:
        assert (trained / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_prints_the_same_accuracies(trained: Path) -> None:
    result = _process("evaluate", trained)
    summary = json.loads((trained / "summary.json").read_text())
    for layer, accuracy in enumerate(summary["test_accuracy"], start=1):
        assert f"layer {layer}: {100 * accuracy:.2f} %" in result.stdout


def test_predict_labels_a_file(trained: Path, tmp_path: Path) -> None:
    data = load_dataset("digits")
    file = tmp_path / "some.npz"
    np.savez(file, x=data.test_x[:50].numpy())
    lines = _spela("predict", trained, file).stdout.splitlines()
    assert lines[0].split("\t") == ["index", "label", "class", "score"]
    labels = torch.tensor([int(line.split("\t")[1]) for line in lines[1:]])
    assert (labels == data.test_y[:50]).double().mean() > 0.7


def test_predict_by_the_mean_of_all_layers(trained: Path, tmp_path: Path) -> None:
    data = load_dataset("digits")
    file = tmp_path / "all.npz"
    np.savez(file, x=data.test_x.numpy())
    answers = {}
    for answer in ("last", "mean"):
        found = json.loads(_spela("predict", trained, file, "--answer", answer, "--json").stdout)
        answers[answer] = torch.tensor([row["label"] for row in found])
    summary = json.loads((trained / "summary.json").read_text())
    right = {name: (labels == data.test_y).double().mean() for name, labels in answers.items()}
    assert right["last"] == pytest.approx(summary["test_accuracy"][-1])
    assert right["mean"] == pytest.approx(summary["vote_accuracy"])
    assert not torch.equal(answers["last"], answers["mean"])


def test_images_are_labelled_with_their_names(trained: Path, tmp_path: Path) -> None:
    data = load_dataset("digits")
    files = [tmp_path / f"{name}.png" for name in "ba"]
    for file, image in zip(files, data.test_x, strict=False):
        Image.fromarray((255 * image.reshape(8, 8)).byte().numpy()).save(file)
    (tmp_path / "notes.txt").write_text("no image")
    of_folder = _spela("predict", trained, tmp_path).stdout.splitlines()
    assert of_folder[0].split("\t") == ["index", "label", "class", "score", "file"]
    assert [line.split("\t")[-1] for line in of_folder[1:]] == [*map(str, sorted(files))]
    given = json.loads(_spela("predict", trained, *files, "--json").stdout)
    assert [answer["file"] for answer in given] == [*map(str, files)]
    assert [answer["label"] for answer in given] == [
        int(line.split("\t")[1]) for line in reversed(of_folder[1:])
    ]


@pytest.mark.parametrize("name", ["report.html", "config.json", "notes.txt"])
def test_a_folder_of_other_files_is_no_place_for_a_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    message = _fails(
        capsys, "train", "--data", "digits", "--layers", "8", "--epochs", "1", "--out", tmp_path
    )
    assert f"holds {name} and no run: choose a new folder for --out" in message
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == '{"mine": 1}'


def test_info(trained: Path) -> None:
    assert "back-ends" in _spela("info").stdout
    shown = _spela("info", trained).stdout
    assert "after 4 of 4 epochs" in shown
    assert "SpelaLinear(in_features=64, out_features=64" in shown


def test_same_seed_same_bits_and_resume_of_a_finished_run(trained: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    arguments = [*TRAIN, "--epochs", "4", "--lr", "0.01", "--out", again]
    assert _process(*arguments).returncode == 0
    first, second = (load_file(p / "checkpoint.safetensors") for p in (trained, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert _spela(*arguments, "--resume").returncode == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill-9", "ctrl-c"])
def test_stopped_and_resumed_ends_in_the_same_bits(how: int, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = [*TRAIN, "--epochs", "12", "--batch-size", "4", "--optimizer", "adam"]

    def in_an_epoch(_: int) -> bool:
        metrics = cut / "metrics.jsonl"
        if not metrics.exists() or not metrics.read_text():
            return False
        time.sleep(0.05)  # into the middle of the next
        return True

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*RUN, *arguments, "--out", str(cut)]
    code, error = stopped(command, in_an_epoch, how, env=environment)
    assert code == (130 if how == signal.SIGINT else -signal.SIGKILL), error
    assert error == ("stopped, go on with --resume\n" if how == signal.SIGINT else "")
    assert not (cut / "summary.json").exists()
    result = _process(*arguments, "--out", cut, "--resume")
    assert result.returncode == 0, result.stderr
    assert _spela(*arguments, "--out", whole).returncode == 0
    first, second = (load_file(p / "checkpoint.safetensors") for p in (whole, cut))
    assert any(name.startswith("optimizer.") for name in first)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    def accuracies(path: Path) -> list[object]:
        lines = (path / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["test_accuracy"] for line in lines]

    assert accuracies(whole) == accuracies(cut)


def test_a_full_disk_is_one_line_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    result = _process(*TRAIN, "--epochs", "1", "--out", out, preexec_fn=limit)
    assert result.returncode == 2
    assert result.stderr.startswith("spela: error: ")
    assert result.stderr.count("\n") == 1
    assert f"cannot write {out / 'checkpoint.safetensors'}: " in result.stderr
    assert not list(out.glob("*.safetensors"))
    assert not list(out.glob(".*.tmp"))
    # With room the same command starts.
    assert _spela(*TRAIN, "--epochs", "1", "--out", out).returncode == 0


def test_wrong_arguments(capsys: pytest.CaptureFixture[str], tmp_path: Path, trained: Path) -> None:
    out = tmp_path / "new"
    train = ("train", "--out", out, "--data")
    cases = {
        ("train", "--data", "digits"): "--out",
        (*train, "digit"): "did you mean 'digits'",
        (*train, "digits", "--recipe", "bset"): "did you mean 'best'",
        (*train, "digits", "--objective", "hinge"): "unknown objective 'hinge': use one of log",
        (*train, "digits", "--optimizer", "lion"): "unknown optimizer",
        (*train, "digits", "--vectors", "cubic"): "unknown vectors",
        (*train, "digits", "--normalize-input", "l1"): "unknown normalize_input",
        (*train, "digits", "--layers", "a,b"): "--layers must be sizes",
        (*train, "digits", "--layers", "0"): "layers must be sizes from 1",
        (*train, "digits", "--epochs", "0"): "epochs must be at least 1",
        (*train, "digits", "--lr", "-1"): "lr must be a positive number",
        (*train, "digits", "--lr", "nan"): "lr must be a positive number",
        (*train, "digits", "--backend", "cuda"): "unknown back-end 'cuda'",
        (*train, "digits", "--backend", "triton"): "back-end 'triton' cannot run on device 'cpu'",
        (*train, "digits", "--device", "gpu"): "there is no device 'gpu': use auto, cpu, cuda",
        (*train, "digits", "--device", "meta"): "device 'meta' cannot be used here",
        (*train, "digits", "--seed", "-1"): "seed must be",
        (*train, "digits", "--resume"): "holds no run to continue",
        (*train, tmp_path / "missing.npz"): "does not exist",
        ("train", "--out", trained, "--data", "digits"): "already holds a run",
        ("train", "--out", trained, "--data", "digits", "--resume"): "other settings",
        ("evaluate", tmp_path / "nothing"): "not a folder",
        ("evaluate", tmp_path): "holds no finished epoch",
        ("predict", trained, tmp_path / "no.npz"): "no.npz",
        ("predict", trained, tmp_path / "no.npz", "--answer", "all"): "use last or mean",
        ("trian",): "trian",
        (
            "train",
            "--data",
            "digits",
            "--out",
            trained / "config.json" / "run",
        ): "cannot make the folder",
        (
            "info",
            trained,
            "--card",
            "--out",
            tmp_path / "no" / "x.md",
        ): f"cannot write {tmp_path / 'no' / 'x.md'}",
    }
    for arguments, message in cases.items():
        assert message in _fails(capsys, *arguments), arguments
    assert not out.exists()


def test_damaged_files(capsys: pytest.CaptureFixture[str], tmp_path: Path, trained: Path) -> None:
    good = (trained / "checkpoint.safetensors").read_bytes()
    run = tmp_path / "run"
    run.mkdir()
    for name, content in {
        "truncated": good[: len(good) // 2],
        "empty": b"",
        "text": b"hello",
        "huge header": (2**62).to_bytes(8, "little") + b"{}",
        "header cut": good[:20],
    }.items():
        (run / "checkpoint.safetensors").write_bytes(content)
        assert "not a readable checkpoint" in _fails(capsys, "evaluate", run), name


def test_a_loss_that_is_not_finite_names_the_layer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ("train", "--data", "digits", "--recipe", "backprop", "--optimizer", "sgd")
    error = _fails(capsys, *arguments, "--lr", "1e30", "--out", tmp_path / "run")
    assert "the loss of layer 1 became" in error
    assert "lower --lr (or --weight-decay) in another --out" in error


def test_nan_in_the_data_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((20, 4), dtype=np.float32)
    x[3, 1] = np.nan
    y = np.arange(20) % 2
    np.savez(tmp_path / "bad.npz", train_x=x, train_y=y, test_x=x[:5], test_y=y[:5])
    error = _fails(capsys, "train", "--data", tmp_path / "bad.npz", "--out", tmp_path / "run")
    assert "NaN" in error
    assert not (tmp_path / "run").exists()


def test_evaluate_on_the_training_split(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = {
        split: _spela("evaluate", trained, "--split", split).stdout for split in ("test", "train")
    }
    data = load_dataset("digits")
    assert f"{len(data.test_y):,} test samples" in shown["test"]
    assert f"{len(data.train_y):,} train samples" in shown["train"]
    assert shown["test"].splitlines()[1] != shown["train"].splitlines()[1]
    assert "use test or train" in _fails(capsys, "evaluate", trained, "--split", "val")
    assert "leave --split out" in _fails(
        capsys, "evaluate", trained, "--split", "train", "--exit-loss", "0.1"
    )


def test_evaluate_measures_early_exit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trained: Path
) -> None:
    result = _spela("evaluate", trained, "--exit-loss", "0.01", "--threads", "1")
    assert result.returncode == 0, result.stderr
    assert "all 360 test samples" in result.stdout
    counts = [int(line.split()[3]) for line in result.stdout.splitlines() if " answers " in line]
    assert len(counts) == 2
    assert sum(counts) == 360
    assert "% saved" in result.stdout
    assert "must be a share" in _fails(capsys, "evaluate", trained, "--exit-loss", "7")
    alone = tmp_path / "alone"
    train = ("train", "--data", "digits", "--layers", "8", "--epochs", "1", "--out", alone)
    assert _spela(*train).returncode == 0
    assert "at least two SPELA layers" in _fails(capsys, "evaluate", alone, "--exit-loss", "0.01")


def test_commands_flush_denormal_numbers_and_their_caller_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    denormal = 1e-40
    held: list[float] = []
    monkeypatch.setattr(
        "spela.cli.settings.check_environment", lambda: held.append(torch.tensor(denormal).item())
    )
    monkeypatch.setattr(sys, "argv", ["spela", "info"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert held == [0.0]
    assert torch.tensor(denormal).item() > 0


def test_data_that_changed_are_no_test_of_a_run(tmp_path, capsys):
    # Drawn anew, the split of more samples has most of the test samples of what the run learnt.
    draw = np.random.default_rng(0)
    path = tmp_path / "grow\x1b[2J.npz"

    def save(count):
        x = draw.normal(size=(count, 5)).astype(np.float32)
        np.savez(path, x=x, y=np.arange(count) % 2)

    save(40)
    out = tmp_path / "run"
    command = ("train", "--data", path, "--layers", "4", "--epochs", "1", "--out", out)
    assert _spela(*command).returncode == 0
    save(45)
    assert "holds other samples" in _fails(capsys, "evaluate", out)
    told = _spela("evaluate", out, "--data", path)
    assert told.returncode == 0
    assert "grow?[2J, 9 test samples" in told.stdout


def test_other_data_of_x_and_y_alone_are_judged_whole(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(40, 5)).astype(np.float32), np.arange(40) % 2
    names = np.array(["cat", "dog"])
    np.savez(tmp_path / "mine.npz", x=x, y=y, class_names=names)
    # Of one class there is one sample, which no split could spare.
    np.savez(tmp_path / "new.npz", x=-x[:25], y=np.r_[y[:24] * 0, 1], class_names=names)
    np.savez(tmp_path / "split.npz", train_x=x, train_y=y, test_x=x[:7], test_y=y[:7])
    out = tmp_path / "run"
    command = ("train", "--data", tmp_path / "mine.npz", "--layers", "4", "--epochs", "1")
    assert _spela(*command, "--out", out).returncode == 0
    (tmp_path / "mine.npz").rename(tmp_path / "moved.npz")
    counts = {"new": 25, "split": 7, "moved": 8}
    for name, count in counts.items():
        told = _spela("evaluate", out, "--data", tmp_path / f"{name}.npz", "--json")
        assert json.loads(told.stdout)["samples"] == count, told.stderr
    net = load_run(out).net
    answers = net.predict(torch.from_numpy(-x[:25]))
    right = (answers == torch.from_numpy(np.r_[y[:24] * 0, 1])).double().mean()
    told = _spela("evaluate", out, "--data", tmp_path / "new.npz", "--json")
    assert json.loads(told.stdout)["accuracy"][-1] == pytest.approx(float(right))
