"""Nothing that is loaded can run code: no reader unpickles, and no source line could."""

from __future__ import annotations

import ast
import gzip
import io
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from spela.cli import main
from spela.data import Dataset, load_dataset, read_inputs
from spela.experiments import load_run, make_config, run
from spela.reports.card import describe

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("spela", "spela_kernels", "examples", "bench")
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
# Modules whose purpose is to read what pickle wrote, or to run code from data.
FORBIDDEN = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "yaml",
}
CALLS = {"eval", "exec", "compile", "__import__"}


def _name(node: ast.expr) -> str:
    """`torch.load` of the call torch.load(...)."""
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe_lines(source: str) -> list[str]:
    """What in a source text could unpickle or run what a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        found += [f"imports {m}" for m in modules if m.split(".")[0] in FORBIDDEN]
        if not isinstance(node, ast.Call):
            continue
        name, given = _name(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in (
            "torch.load",
            "torch.jit.load",
            "torch.export.load",
            "torch.package.PackageImporter",
        ):
            if name != "torch.load" or given.get("weights_only") != "True":
                found.append(f"{name} without weights_only=True")
        elif name in CALLS:
            found.append(name)
        elif "allow_pickle" in given and given["allow_pickle"] != "False":
            found.append(f"{name} with pickle")
        elif name.endswith("read_array") and name.split(".")[0] in ("npy", "np", "numpy"):
            if given.get("allow_pickle") != "False":
                found.append(f"{name} without allow_pickle=False")
        elif name.endswith("load_state_dict_from_url") and given.get("weights_only") != "True":
            found.append(f"{name} without weights_only=True")
    return found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.export.load(path)",
        "np.load(path, allow_pickle=True)",
        "npy.read_array(stream)",
        "eval(text)",
    ],
)
def test_the_check_sees(line):
    assert unsafe_lines(line)


def test_no_source_line_can_unpickle():
    assert len(SOURCES) > 100
    bad = {str(p.relative_to(ROOT)): unsafe_lines(p.read_text(encoding="utf-8")) for p in SOURCES}
    assert not {name: lines for name, lines in bad.items() if lines}


class Unpickled(Exception):
    """Raised by every way into pickle while `poisoned` holds."""


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise Unpickled


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    import _pickle

    for module in (pickle, _pickle):
        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(module, name, _refuse)
    monkeypatch.setattr(pickle, "_Unpickler", _refuse)
    monkeypatch.setattr(torch, "load", _refuse)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of every kind that is read."""
    folder = tmp_path_factory.mktemp("files")
    run(CONFIG, _little(), folder / "run")
    images = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)
    labels = np.array([0, 1, 0, 1], np.uint8)
    np.savez(folder / "data.npz", train_x=images, train_y=labels, test_x=images, test_y=labels)
    np.save(folder / "x.npy", images)
    (folder / "idx").mkdir()
    for part in ("train", "t10k"):
        x = struct.pack(">BBBB3I", 0, 0, 8, 3, 4, 8, 8) + images.tobytes()
        y = struct.pack(">BBBBI", 0, 0, 8, 1, 4) + labels.tobytes()
        (folder / "idx" / f"{part}-images-idx3-ubyte").write_bytes(x)
        (folder / "idx" / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(y))
    from PIL import Image

    Image.fromarray(images[0]).save(folder / "a.png")
    (folder / "cifar-100-python").mkdir()
    batch = {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [3, 4]}
    for part in ("train", "test"):
        (folder / "cifar-100-python" / part).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


CONFIG = make_config("digits", layers=(8,), epochs=1)


def _little() -> Dataset:
    return load_dataset("digits").subset(train=40, test=20)


READERS: dict[str, Callable[[Path], object]] = {
    "checkpoint": lambda folder: load_run(folder / "run"),
    "resume": lambda folder: run(CONFIG, _little(), folder / "run", resume=True),
    "card": lambda folder: describe(folder / "run"),
    "npz": lambda folder: load_dataset(folder / "data.npz"),
    "npy": lambda folder: read_inputs(folder / "x.npy", (1, 8, 8)),
    "idx": lambda folder: load_dataset(folder / "idx"),
    "image": lambda folder: read_inputs(folder / "a.png", (1, 8, 8)),
    "cifar": lambda folder: load_dataset("cifar100", folder, download=False),
}


@pytest.mark.parametrize("kind", READERS)
def test_reading_never_touches_pickle(kind, files, poisoned):
    READERS[kind](files)


def test_the_commands_never_touch_pickle(files, poisoned, monkeypatch, capsys):
    evaluate = ["evaluate", "run", "--data", "digits"]  # all of them: it learnt from some
    for command in (evaluate, ["info", "run"], ["predict", "run", "x.npy"]):
        arguments = [str(files / a) if (files / a).exists() else a for a in command]
        monkeypatch.setattr(sys, "argv", ["spela", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 0, capsys.readouterr().err


def test_the_poison_works(poisoned):
    with pytest.raises(Unpickled):
        pickle.loads(b"")
    with pytest.raises(Unpickled):
        np.load(io.BytesIO(_object_array()), allow_pickle=True)


def _object_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{}], dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "x.npy", "x.npz", "x-idx"])
def test_a_pickle_under_any_name_is_refused_unread(name, tmp_path, poisoned):
    content = b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94."
    (tmp_path / name).write_bytes(content)
    read = load_run if name.startswith("checkpoint") else _read_input
    with pytest.raises(ValueError, match=r"not a|cannot read"):
        read(tmp_path if read is load_run else tmp_path / name)


def _read_input(path: Path) -> object:
    return read_inputs(path, (1, 8, 8))
