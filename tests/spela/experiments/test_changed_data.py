"""A run is of the data that its folder's name was made from, whatever becomes of the file in between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spela.experiments import runner
from spela.experiments.declare import Experiment, Row
from spela.experiments.plan import Options, plan, run_key
from spela.experiments.reproduce import reproduce
from spela.experiments.runner import run_folder, run_jobs
from spela.training import RunFolder, checkpoint

ROWS = (
    Row("ours", "best", settings={"layers": (8, 8), "epochs": 2}, rival="theirs"),
    Row("theirs", "backprop", settings={"layers": (8, 8), "epochs": 2}),
)
EXPERIMENT = Experiment("mlp", "A test", ("digits",), ROWS)


def _arrays(seed: int, tells: bool) -> dict[str, np.ndarray]:
    """Samples whose class is, or is not, in their values."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 2, 120)
    x = draw.random((120, 6)).astype(np.float32)
    if tells:
        x[:, 0] = y
    return {"train_x": x[:80], "train_y": y[:80], "test_x": x[80:], "test_y": y[80:]}


def _figures(table: dict) -> list[float]:
    return [row["accuracy"][-1]["mean"] for row in table["rows"]]


def test_a_file_that_was_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **_arrays(0, True))
    options = Options(tmp_path / "one", (0,), (str(path),))
    first = reproduce(EXPERIMENT, options)
    np.savez(path, **_arrays(1, False))
    second = reproduce(EXPERIMENT, options)
    assert all(a["runs"] != b["runs"] for a, b in zip(first["rows"], second["rows"], strict=True))
    runner._load.cache_clear()
    anew = reproduce(EXPERIMENT, replace(options, out=tmp_path / "two"))
    assert _figures(second) == _figures(anew)


def test_a_file_that_changes_within_a_call_makes_no_run(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **_arrays(0, True))
    options = Options(tmp_path / "out", (0,), (str(path),))
    jobs = plan(EXPERIMENT, options)
    np.savez(path, **_arrays(1, False))
    outcomes = run_jobs(jobs, options)
    assert {outcome.status for outcome in outcomes.values()} == {"failed"}
    assert all("was changed since this call" in outcome.error for outcome in outcomes.values())


def test_a_folder_of_files_is_known_by_what_they_hold(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    keys = []
    for content in (b"one", b"two"):
        (folder / "train-images-idx3-ubyte").write_bytes(content)
        config = replace(plan(EXPERIMENT, Options(tmp_path))[0].config, data=str(folder))
        keys.append(run_key(config))
    assert keys[0] != keys[1]
    folder.rename(tmp_path / "elsewhere")
    (tmp_path / "at").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "at" / "mine")
    assert run_key(replace(config, data=str(tmp_path / "at" / "mine"))) == keys[1]


def test_two_datasets_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two datasets are named x"):
        Options(tmp_path, data=("a/x.npz", "b/x.npz"))


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "x.npz", **_arrays(0, True))
    jobs = plan(EXPERIMENT, Options(tmp_path / "out", (0,), ("~/x.npz",)))
    assert [job.problem for job in jobs] == ["", ""]


def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(tmp_path, (0,), rows="ours")
    jobs = plan(EXPERIMENT, options)
    run_jobs(jobs, options)
    folder = run_folder(options, jobs[0].key)
    RunFolder(folder.path).remove_summary()
    held = folder.checkpoint.read_bytes()

    def no_more_files(*_: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "read_tensors", no_more_files)
        outcome = run_jobs(jobs, options)[jobs[0].key]
    assert (outcome.status, "Too many open files" in outcome.error) == ("failed", True)
    assert folder.checkpoint.read_bytes() == held
    assert run_jobs(jobs, options)[jobs[0].key].status == "done"


def test_early_exit_is_measured_on_the_data_that_was_learnt_from(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **_arrays(0, True))
    experiment = Experiment(
        "early-exit", "A test", ("digits",), (replace(ROWS[0], rival=""),), measure="exits"
    )
    options = Options(tmp_path / "out", (0,), (str(path),))
    reproduce(experiment, options)
    (job,) = plan(experiment, options)
    folder = RunFolder(options.out / "runs" / job.key)
    np.savez(path, **_arrays(1, False))
    (other,) = plan(experiment, options)
    folder.path.rename(folder.path.parent / other.key)  # as if the data had been replaced unseen
    measured = reproduce(experiment, options)["measured"]
    assert "holds other samples" in measured["unavailable"]
    assert "points" not in measured
