"""`spela export`, and the example that trains from its file on a machine without PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spela import SpelaLinear, SpelaSequential
from spela.cli import main
from spela.data import load_dataset
from spela.experiments import make_config, run
from spela.export import train_step_program, write_onnx
from spela.optim import LocalSGD

ROOT = Path(__file__).resolve().parents[3]


def _train(out: Path, **settings: object) -> Path:
    data = load_dataset("digits")
    run(make_config("digits", epochs=1, **settings), data, out)  # type: ignore[arg-type]
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train(tmp_path_factory.mktemp("runs") / "mlp", layers=(64, 48))


@pytest.fixture(scope="module")
def trained_cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"channels": (8,), "layers": (32,), "kernel_size": 3}
    return _train(tmp_path_factory.mktemp("runs") / "cnn", model="cnn", **sizes)


def _spela(patch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    patch.setattr(sys, "argv", ["spela", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with net.onnx, of the trained weights, and step.onnx, of those it started from."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        assert _spela(patch, "export", trained, "--out", folder / "net.onnx") == 0
        step = ("--what", "train-step", "--untrained", "--out", folder / "step.onnx")
        assert _spela(patch, "export", trained, *step) == 0
    return folder


@pytest.mark.parametrize(("what", "format"), [("inference", "onnx"), ("train-step", "pt2")])
def test_it_writes_one_file(what, format, trained, tmp_path, monkeypatch, capsys):
    out = tmp_path / f"file.{format}"
    arguments = ("export", trained, "--what", what, "--out", out)
    assert _spela(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    assert f"{out.stat().st_size:,} bytes" in shown
    assert "inputs: x" in shown
    assert list(tmp_path.iterdir()) == [out]


def test_weights_of_another_run_are_refused(tmp_path, monkeypatch, capsys):
    """Of the same settings, on the same samples in another order."""
    data = load_dataset("digits")
    turned = replace(data, train_x=data.train_x.flip(0), train_y=data.train_y.flip(0))
    for name, samples in (("one", data), ("other", turned)):
        run(make_config("digits", epochs=1, layers=(6,)), samples, tmp_path / name)
    checkpoint = "checkpoint.safetensors"
    (tmp_path / "other" / checkpoint).replace(tmp_path / "one" / checkpoint)
    out = tmp_path / "net.pt2"
    for what in ("inference", "train-step"):
        assert _spela(monkeypatch, "export", tmp_path / "one", "--what", what, "--out", out) == 2
        assert "the weights" in capsys.readouterr().err
        assert not out.exists()


def test_weights_apart_are_a_second_file_that_the_command_names(
    trained, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "net.onnx"
    assert _spela(monkeypatch, "export", trained, "--weights-apart", "--out", out) == 0
    beside = tmp_path / "net.safetensors"
    assert f"weights and states, first values in {beside}" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == [out, beside]
    other = tmp_path / "net.pt2"
    assert _spela(monkeypatch, "export", trained, "--weights-apart", "--out", other) == 2
    assert f"--weights-apart is not for {other}, which is no .onnx file" in capsys.readouterr().err
    assert not other.exists()


# Stands in for a machine without PyTorch: an import of it is an error.
WITHOUT_TORCH = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "spela", "spela_kernels"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _train_without_torch(step: Path, saved: Path) -> tuple[float, float]:
    """The last layer's test accuracy in % that the example shows, before and after training."""
    script = ROOT / "examples" / "train_on_device.py"
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(script), str(step), "--save", str(saved)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    lines = result.stdout.splitlines()
    first, last = (
        float(line.split("%")[1].split("loss")[0].split()[-1]) for line in (lines[0], lines[-1])
    )
    return first, last


def test_the_device_example_learns_without_torch(exported, tmp_path):
    saved = tmp_path / "weights.npz"
    first, last = _train_without_torch(exported / "step.onnx", saved)
    assert first < 30
    assert last > 85
    assert saved.stat().st_size > 64 * 64 * 4


@pytest.mark.slow
def test_a_run_of_convolutions_trains_without_torch(trained_cnn, tmp_path, monkeypatch, capsys):
    step, saved = tmp_path / "step.onnx", tmp_path / "weights.npz"
    arguments = ("export", trained_cnn, "--what", "train-step", "--untrained", "--out", step)
    assert _spela(monkeypatch, *arguments) == 0
    assert "inputs: x, target, lr, training\n" in capsys.readouterr().out
    first, last = _train_without_torch(step, saved)
    assert first < 30
    assert last > 90
    with np.load(saved) as reached:
        assert int(reached["0.norm.num_batches_tracked"]) == 400  # evaluating moved nothing


def test_the_code_of_the_documentation_runs(exported, monkeypatch, capsys):
    monkeypatch.chdir(exported)
    page = (ROOT / "docs" / "how-to" / "export.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in page.split("```python")[1:]]
    answers, own, steps = blocks
    scope: dict[str, object] = {}
    exec(answers, scope)
    assert scope["labels"].shape == (5,)  # type: ignore[attr-defined]
    exec(own, {})
    capsys.readouterr()
    exec(steps, {})
    shown = capsys.readouterr().out.splitlines()
    first, last = (sum(map(float, line.strip("[]").split())) for line in (shown[0], shown[-1]))
    assert last < first  # the losses of one batch, ten steps on


def test_foreseen_errors_are_one_line_and_write_nothing(trained, tmp_path, monkeypatch, capsys):
    out, folder = tmp_path / "file.onnx", tmp_path / "folder.onnx"
    folder.mkdir()
    rival = _train(tmp_path / "rival", recipe="backprop", layers=(8,))
    blocks = _train(tmp_path / "blocks", model="resnet", width=8)
    cases = {
        (tmp_path / "none", "--out", out): "is not a folder",
        (tmp_path, "--out", out): "holds no finished epoch",
        (trained, "--out", folder): "is a folder: give --out the name of a file",
        (trained, "--out", tmp_path / "no" / "file.pt2"): "a folder that exists",
        (trained, "--out", tmp_path): "end its name with one of .onnx, .pt2, .pte",
        (trained, "--out", out, "--what", "training"): "use one of inference, train-step",
        (trained, "--out", tmp_path / "file.tflite"): "end its name with one of .onnx, .pt2, .pte",
        (trained, "--out", out, "--batch-size", "0"): "batch size must be at least 1",
        (trained, "--out", out, "--opset", "7"): "opset must be in",
        (rival, "--out", out, "--what", "train-step"): "use --what inference",
        (
            blocks,
            "--out",
            out,
            "--what",
            "train-step",
        ): "layer 0 is a SpelaBlock: only the training",
    }
    for arguments, message in cases.items():
        assert _spela(monkeypatch, "export", *arguments) == 2, arguments
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not out.exists()


def test_the_device_s_example_names_the_samples_of_another_step(tmp_path):
    net = SpelaSequential(SpelaLinear(20, 6, 3))
    write_onnx(
        train_step_program(net, LocalSGD(net.parameters(), lr=0.1), (20,)), tmp_path / "s.onnx"
    )
    call = [sys.executable, ROOT / "examples" / "train_on_device.py", tmp_path / "s.onnx"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith("s.onnx takes samples of (20), and the digits are (1, 8, 8)")
