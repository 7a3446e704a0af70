"""A run's files count only where they agree: every reader refuses a folder that contradicts itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spela.cli import main
from spela.data import Dataset
from spela.experiments import load_run, make_config, run
from spela.experiments.declare import Experiment, Row
from spela.experiments.plan import Options, plan
from spela.experiments.reproduce import rebuild, reproduce
from spela.experiments.runner import finished_summary, run_folder
from spela.export import export_run
from spela.reports.card import describe
from spela.reports.plots import table_figures
from spela.reports.run import write_report
from spela.training import RunConfig, RunFolder, read_checkpoint, read_evidence

SETTINGS = {"layers": (8, 6), "batch_size": 8}


def _config(**changes: Any) -> RunConfig:
    return make_config("little", "best", 3, **{**SETTINGS, "epochs": 3, **changes})


@pytest.fixture(scope="module")
def data() -> Dataset:
    g = torch.Generator().manual_seed(2)
    y = torch.arange(40) % 4
    x = torch.randn(40, 6, generator=g) + y[:, None]
    return Dataset("little", x[:30], y[:30], x[30:], y[30:], 4, tuple("abcd"))


@pytest.fixture(scope="module")
def runs(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, one with another seed, and one that is shorter."""
    out = tmp_path_factory.mktemp("runs")
    run(_config(), data, out / "run")
    run(make_config("little", "best", 4, epochs=3, **SETTINGS), data, out / "other")
    run(_config(epochs=2), data, out / "short")
    return out


def _lines(path: Path) -> list[str]:
    return (path / "metrics.jsonl").read_text().splitlines(keepends=True)


def _edit(path: Path, **changes: Any) -> None:
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, **changes}))


def _copy(name: str, other: str = "other") -> Callable[[Path, Path], object]:
    return lambda run, runs: shutil.copy(runs / other / name, run / name)


# What is wrong in the folder, and the words that say so.
DAMAGE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "records cut": (
        lambda run, _: (run / "metrics.jsonl").write_text("".join(_lines(run)[:2])),
        "metrics.jsonl",
    ),
    "records twice": (
        lambda run, _: (run / "metrics.jsonl").write_text("".join(x * 2 for x in _lines(run))),
        "epoch 1 is out of order",
    ),
    "records emptied": (lambda run, _: (run / "metrics.jsonl").write_text(""), "metrics.jsonl"),
    "a record torn": (
        lambda run, _: (run / "metrics.jsonl").write_text("".join(_lines(run))[:-20]),
        "metrics.jsonl",
    ),
    "a figure missing": (
        lambda run, _: (run / "metrics.jsonl").write_text(
            "".join(line.replace('"vote_accuracy"', '"vote"') for line in _lines(run))
        ),
        "epoch 1 in metrics.jsonl has no vote_accuracy",
    ),
    "no layer's loss": (
        lambda run, _: (run / "metrics.jsonl").write_text(
            "".join(
                line.replace('"train_loss": [', '"train_loss": 1, "loss": [')
                for line in _lines(run)
            )
        ),
        "epoch 1 in metrics.jsonl has no train_loss",
    ),
    "records of another run": (_copy("metrics.jsonl"), "not that of the last epoch"),
    "summary of another run": (
        _copy("summary.json"),
        "other settings than config.json (seed 4, 3)",
    ),
    "summary of a shorter run": (_copy("summary.json", "short"), "epochs 2, 3"),
    "config of another run": (_copy("config.json"), "other settings than config.json (seed 3, 4)"),
    "config edited": (lambda run, _: _edit(run / "config.json", lr=0.5), "lr 0.001, 0.5"),
    "accuracy edited": (
        lambda run, _: _edit(run / "summary.json", test_accuracy=[0.9, 0.99]),
        "test_accuracy in summary.json",
    ),
    "epochs edited": (lambda run, _: _edit(run / "summary.json", epochs=30), "says 30 epochs"),
    "seconds edited": (
        lambda run, _: _edit(run / "summary.json", seconds_per_epoch=1e-9),
        "seconds_per_epoch",
    ),
}
# These need the weights to be seen.
WEIGHTS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "checkpoint of another run": (_copy("checkpoint.safetensors"), "(seed 4, 3)"),
    "checkpoint of a shorter run": (_copy("checkpoint.safetensors", "short"), "(epochs 2, 3)"),
}


def _damaged(runs: Path, tmp_path: Path, damage: Callable[[Path, Path], object]) -> RunFolder:
    folder = tmp_path / "run"
    shutil.copytree(runs / "run", folder)
    damage(folder, runs)
    return RunFolder(folder)


@pytest.fixture
def damaged(request: pytest.FixtureRequest, runs: Path, tmp_path: Path) -> tuple[RunFolder, str]:
    """A folder damaged as a row of the tables says, and that row's words."""
    damage, words = request.param
    return _damaged(runs, tmp_path, damage), words


@pytest.mark.parametrize("damaged", DAMAGE.values(), ids=DAMAGE, indirect=True)
def test_every_reader_refuses_files_that_disagree(
    damaged: tuple[RunFolder, str], runs: Path, data: Dataset, tmp_path: Path
) -> None:
    folder, words = damaged
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    sound = load_run(runs / "run")
    readers: dict[str, Callable[[], object]] = {
        "evidence": lambda: read_evidence(folder),
        "report": lambda: write_report(folder, sound, data),
        "evaluate, predict": lambda: load_run(folder.path),
        "card": lambda: describe(folder.path),
        "export": lambda: export_run(folder.path, tmp_path / "x.onnx"),
        "resume": lambda: run(_config(), data, folder.path, resume=True),
    }
    for reader, read in readers.items():
        with pytest.raises(ValueError, match="disagrees with itself") as refused:
            read()
        assert words in str(refused.value), reader
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before


@pytest.mark.parametrize("damaged", WEIGHTS.values(), ids=WEIGHTS, indirect=True)
def test_a_checkpoint_of_another_run_is_refused(
    damaged: tuple[RunFolder, str], data: Dataset, tmp_path: Path
) -> None:
    folder, words = damaged
    for unfinished in (False, True):
        if unfinished:
            folder.summary.unlink()
        for read in (
            lambda: load_run(folder.path),
            lambda: export_run(folder.path, tmp_path / "x.onnx"),
            lambda: run(_config(), data, folder.path, resume=True),
        ):
            with pytest.raises(ValueError, match="disagrees with itself") as refused:
                read()
            assert words in str(refused.value)


def test_weights_and_records_of_an_unfinished_run_belong_together(
    runs: Path, tmp_path: Path
) -> None:
    def damage(run: Path, runs: Path) -> None:
        (run / "summary.json").unlink()
        shutil.copy(runs / "other" / "metrics.jsonl", run / "metrics.jsonl")

    folder = _damaged(runs, tmp_path, damage)
    with pytest.raises(ValueError, match="not those of epoch 3 in metrics"):
        load_run(folder.path)


def test_what_a_killed_process_leaves_is_no_disagreement(
    runs: Path, data: Dataset, tmp_path: Path
) -> None:
    def killed(run: Path, runs: Path) -> None:
        (run / "summary.json").unlink()
        with open(run / "metrics.jsonl", "a") as file:  # killed between record and checkpoint
            file.write(
                json.dumps({**json.loads(_lines(run)[-1]), "epoch": 4}) + '\n{"epoch": 5, "tr'
            )

    folder = _damaged(runs, tmp_path, killed)
    evidence, checkpoint = read_checkpoint(folder)
    assert (checkpoint.epoch, [r["epoch"] for r in evidence.records]) == (3, [1, 2, 3])
    assert load_run(folder.path).records == evidence.records
    run(_config(), data, folder.path, resume=True)
    assert read_evidence(folder).summary is not None
    alone = tmp_path / "alone"  # as somebody passes weights on
    alone.mkdir()
    shutil.copy(folder.checkpoint, alone)
    assert load_run(alone).records == []


EXPERIMENT = Experiment(
    "mlp",
    "A test",
    ("digits",),
    (Row("best", "best", settings={"layers": (8, 8), "epochs": 3}),),
    main=("best",),
)


def test_tables_and_plots_refuse_a_cut_record(tmp_path: Path) -> None:
    options = Options(tmp_path, seeds=(0, 1))
    table = reproduce(EXPERIMENT, options)
    (_, _, figure), *_ = (f for f in table_figures(table, tmp_path / "runs") if "curves" in f[0])
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [3, 3]
    job = plan(EXPERIMENT, options)[1]
    folder = run_folder(options, job.key)
    whole = folder.metrics.read_bytes()
    folder.metrics.write_text("".join(_lines(folder.path)[:2]))
    for read in (
        lambda: finished_summary(folder, job.config),
        lambda: rebuild(EXPERIMENT, options),
        lambda: reproduce(EXPERIMENT, options),
        lambda: table_figures(table, tmp_path / "runs"),
    ):
        with pytest.raises(
            ValueError, match=f"{job.key} disagrees with itself: summary.json says 3"
        ):
            read()
    folder.metrics.write_bytes(whole)
    assert rebuild(EXPERIMENT, options)["rows"] == table["rows"]


def test_the_command_line_says_it_in_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _damaged(runs, tmp_path, DAMAGE["config edited"][0])
    monkeypatch.setattr(sys, "argv", ["spela", "evaluate", str(folder.path)])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith(f"spela: error: {folder.path} disagrees with itself: ")
    assert error.count("\n") == 1


def test_a_refusal_is_one_line_whatever_the_files_hold(runs: Path, tmp_path: Path) -> None:
    done = next(path for path in sorted(runs.iterdir()) if (path / "summary.json").exists())
    shutil.copytree(done, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text('{"\\n": false}')
    with pytest.raises(ValueError, match="other settings than") as refused:
        read_evidence(RunFolder(tmp_path / "run"))
    assert "\n" not in str(refused.value)


def test_a_run_is_not_resumed_on_other_data(data: Dataset, tmp_path: Path) -> None:
    config = _config(epochs=2, schedule="constant")
    run(config, data, tmp_path / "run")
    before = {file: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.is_file()}
    longer = dataclasses.replace(config, epochs=3)
    for other in (
        dataclasses.replace(data, train_x=-data.train_x),
        dataclasses.replace(data, test_y=data.test_y.flip(0)),
        dataclasses.replace(data, class_names=tuple("abdc")),
        data.subset(train=20),
    ):
        with pytest.raises(ValueError, match="other samples, labels or class names"):
            run(longer, other, tmp_path / "run", resume=True, extend=True)
    assert all(file.read_bytes() == held for file, held in before.items())
    moved = dataclasses.replace(data, source="elsewhere")
    assert run(longer, moved, tmp_path / "run", resume=True, extend=True)["epochs"] == 3


def test_damaged_weights_are_not_trained_on(runs: Path, data: Dataset, tmp_path: Path) -> None:
    shutil.copytree(runs / "short", tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(name for name in tensors if name.startswith("model.") and name.endswith("weight"))
    tensors[name][0, 0] = 1e6
    assert len(metadata.pop("sha256")) == 64  # as in files of older versions
    save_file(tensors, path, metadata)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match="disagrees with itself"):
        run(_config(epochs=3), data, tmp_path / "run", resume=True, extend=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_file_of_the_run_itself_is_not_written_over(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "short", tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.safetensors"
    before = path.read_bytes()
    for command in (["export"], ["info", "--card"]):
        monkeypatch.setattr(sys, "argv", ["spela", *command, str(path.parent), "--out", str(path)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        assert "is a file of the run itself" in capsys.readouterr().err
        assert path.read_bytes() == before


@pytest.mark.parametrize("part", ["bias", "vectors", "exp_avg"])
def test_a_changed_number_of_any_tensor_is_found(
    part: str, runs: Path, data: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(runs / "short", tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    # Copies: up to safetensors 0.7 they would lie in the file that is written again below.
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata)
    load_run(tmp_path / "run")  # the same tensors by another hand
    next(tensor for name, tensor in tensors.items() if name.endswith(part)).view(-1)[0] += 1
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match="its tensors are not those that were written"):
        load_run(tmp_path / "run")
