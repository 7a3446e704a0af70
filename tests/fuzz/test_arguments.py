"""Command lines of all kinds: help, work, or one line of error and exit code 2; never a traceback."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz_limits import bounded_memory, fuzz
from hypothesis import example, given
from hypothesis import strategies as st

from spela.benchmarks import GROUPS
from spela.cli import main
from spela.data import load_dataset
from spela.experiments import build_network, build_optimizer, make_config, run

NUMBERS = ["0", "1", "-1", "2", "3.5", "nan", "inf", "-inf", "1e400", "1e-400", "1e30", "0x10"]
NUMBERS += ["9" * 30, str(2**31), str(2**63), "1_0", "\u0661\u0662", "", " ", "9" * 5000]
_WORDS = """best paper cnn mlp backprop adam sgd log softmax gelu prelu all 2:10 10:2 : unit rms gaussian
cosine auto cpu cuda:99 meta reference triton 12,11 12, , 1000000000 digits tiny.npz run none.npz / ..
a\x00b \udcff \u00e9 -- - -h = inference train-step onnx pt2"""
WORDS = _WORDS.split()
_FLAGS = """--out --data --model --recipe --layers --head --channels --kernel-size --symmetric-dim --groups
--projection-std --conv-objective --conv-scale --resize --noise --epochs --head-epochs --seed --batch-size
--objective --scale --activation --negative-slope --vectors --normalize-input --dropout --optimizer --lr
--momentum --weight-decay --schedule --shuffle --no-shuffle --resume --threads --backend --device --what
--opset --untrained --card --help"""
FLAGS = _FLAGS.split()
VALUES = st.sampled_from(NUMBERS + WORDS) | st.text(max_size=6)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small dataset and a trained run."""
    folder = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    np.savez(folder / "tiny.npz", x=rng.random((20, 1, 6, 6), np.float32), y=np.arange(20) % 2)
    data = load_dataset(folder / "tiny.npz")
    run(make_config(str(folder / "tiny.npz"), layers=(4, 3), epochs=1), data, folder / "run")
    return folder


def _only_build(config: Any, dataset: Any, *rest: Any, **options: Any) -> None:
    """In place of training: what is left of it is the network's size."""
    if config.data not in ("digits", "tiny.npz"):
        return
    build_optimizer(config, build_network(config, dataset.sample_shape, dataset.num_classes))


def _call(place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    home = os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["spela", *arguments])
        patch.setattr("spela.cli.running.train_run", _only_build)
        patch.setattr("spela.data.registry.download_into", _refuse)
        for group in GROUPS:  # minutes each
            patch.setitem(GROUPS, group, lambda quick, device: [])
        patch.setenv("SPELA_DATA_ROOT", str(place / "none"))
        os.chdir(place)
        try:
            with bounded_memory(), pytest.raises(SystemExit) as stop:
                main()
        finally:
            os.chdir(home)
    error = capsys.readouterr().err
    assert stop.value.code in (0, 2), (arguments, stop.value.code, error)
    if stop.value.code == 2:
        lines = [line for line in error.splitlines() if line.startswith("spela: error: ")]
        assert len(lines) == 1, (arguments, error)
        assert "Traceback" not in error
        # Of a call that is wrong in our own code, which the command line takes for a user's mistake.
        assert "positional argument" not in error, (arguments, error)
        assert "unexpected keyword" not in error, (arguments, error)


def _refuse(*_: object) -> None:
    raise ValueError("no download in this test")


@st.composite
def trainings(draw: Any) -> list[str]:
    """`train` with sound data and a few options, each with a value that may be anything."""
    data = draw(st.sampled_from(["digits", "tiny.npz"]))
    chosen = draw(st.lists(st.tuples(st.sampled_from(FLAGS), VALUES), max_size=4))
    model = draw(st.sampled_from(["mlp", "cnn"]))
    start = ["train", "--data", data, "--model", model, "--out", "new"]
    return [*start, *(part for flag, value in chosen for part in (flag, value))]


@fuzz(150)
@given(arguments=trainings())
@example(arguments=["train", "--data", "digits", "--out", "new", "--layers", "1000000000"])
@example(arguments=["train", "--data", "digits", "--out", "new", "--layers", "9" * 30])
@example(arguments=["train", "--data", "digits", "--out", "new", "--resize", "1000000"])
@example(arguments=["train", "--data", "digits", "--out", "new", "--resize", str(2**63)])
def test_training(place, capsys, arguments):
    _call(place, capsys, arguments)


@fuzz(60)
@given(
    command=st.sampled_from(
        ["evaluate", "predict", "info", "export", "bench", "train", "none", ""]
    ),
    rest=st.lists(st.sampled_from(FLAGS) | VALUES, max_size=5),
    sound=st.booleans(),
)
def test_any_command(place, capsys, command, rest, sound):
    _call(place, capsys, [command, *(["run"] if sound else []), *rest])
