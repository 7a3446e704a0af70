"""Runs that are kept, resumed, repeated in other processes, or fail alone; and the table they leave."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from spela.data import Dataset
from spela.experiments.declare import LAST, Experiment, Range, Row
from spela.experiments.plan import Options, plan
from spela.experiments.reproduce import rebuild, reproduce
from spela.experiments.runner import Outcome, _pool, run_jobs
from spela.experiments.tables import build_table, mean_and_deviation
from spela.features import feature_file, save_features
from spela.reports.cells import cells
from spela.reports.published import beside_published, verdict
from spela.training import RunFolder

SMALL = {"layers": (12, 12), "epochs": 2}
EXPERIMENT = Experiment(
    name="mlp",
    title="A test",
    data=("digits",),
    rows=(
        Row(
            "ours",
            "tmlr",
            settings=SMALL,
            published={"digits": {1: (90.0, 0.5)}},
            measured={"digits": {LAST: 50.0}},
            rival="theirs",
            panel="recipes",
        ),
        Row(
            "theirs",
            "backprop",
            settings=SMALL,
            published={"digits": {LAST: Range(1.0, 99.9)}},
            panel="recipes",
        ),
        Row("diverges", "backprop", settings={**SMALL, "optimizer": "sgd", "lr": 1e30}),
        Row(
            "deep",
            "tmlr",
            settings={"layers": (8,) * 6, "epochs": 1},
            published={"digits": {1: Range(99.5, 99.9)}},
            panel="depth",
            x=6,
        ),
    ),
    panels={"recipes": "", "depth": "layers"},
)


def _accuracies(table: dict) -> list:
    return [[figure["mean"] for figure in row.get("accuracy", [])] for row in table["rows"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Options, list[Outcome]]:
    options = Options(tmp_path_factory.mktemp("results"), seeds=(0, 1))
    outcomes: list[Outcome] = []
    table = reproduce(EXPERIMENT, options, 1, lambda outcome, *_: outcomes.append(outcome))
    return table, options, outcomes


def test_table_holds_means_deviations_and_differences(
    finished: tuple[dict, Options, list[Outcome]],
) -> None:
    table, options, _ = finished
    ours, theirs = table["rows"][:2]
    keys = [job.key for job in plan(EXPERIMENT, options) if job.row.name == "ours"]
    runs = [json.loads((options.out / "runs" / key / "summary.json").read_text()) for key in keys]
    first = [100 * run["test_accuracy"][0] for run in runs]
    figure = ours["accuracy"][0]
    assert figure["mean"] == pytest.approx(sum(first) / 2)
    assert figure["sd"] == pytest.approx(abs(first[0] - first[1]) / 2**0.5)
    assert figure["n"] == 2
    assert figure["difference"] == pytest.approx(figure["mean"] - 90)
    assert (figure["published_sd"], figure["is_published"]) == (0.5, True)
    last = ours["accuracy"][-1]
    assert (last["published"], last["is_published"]) == (50.0, False)
    ahead = [a - b for a, b in zip(last["by_seed"], theirs["accuracy"][-1]["by_seed"], strict=True)]
    assert ours["rival_difference"] == mean_and_deviation(ahead)
    together = [100 * run["vote_accuracy"] for run in runs]
    assert ours["vote"] == {**mean_and_deviation(together), "by_seed": together}
    ahead = [a - b for a, b in zip(together, theirs["accuracy"][-1]["by_seed"], strict=True)]
    assert ours["rival_vote_difference"] == mean_and_deviation(ahead)
    assert "vote" not in theirs  # one output
    assert ours["rival_accuracy"] == pytest.approx(theirs["accuracy"][-1]["mean"])
    assert json.loads((options.out / "mlp.json").read_text()) == table


def test_a_published_range_is_shown_whole_and_compared_by_its_nearer_end(
    finished: tuple[dict, Options, list[Outcome]],
) -> None:
    _, inside, _, outside = finished[0]["rows"]
    figure = inside["accuracy"][0]
    assert (figure["difference"], verdict(figure)) == (0.0, "within")
    assert cells(inside)[7:9] == ["1.00 to 99.90", "+0.00"]
    figure = outside["accuracy"][0]
    assert figure["difference"] == pytest.approx(figure["mean"] - 99.5)
    assert verdict(figure) == "below"
    found = beside_published(finished[0])
    assert found is not None
    assert found["rows"][-1][1][0] == "published (layer 1) 99.50 to 99.90"


def test_only_seeds_that_both_have_are_compared(
    finished: tuple[dict, Options, list[Outcome]], tmp_path: Path
) -> None:
    table, options, _ = finished
    ours, theirs = table["rows"][:2]
    shutil.copytree(options.out, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "runs" / theirs["runs"][0])
    row = build_table(EXPERIMENT, Options(tmp_path / "copy", (0, 1)), plan(EXPERIMENT, options))[
        "rows"
    ][0]
    second = ours["accuracy"][-1]["by_seed"][1] - theirs["accuracy"][-1]["by_seed"][1]
    assert row["rival_difference"] == {"mean": second, "sd": None, "n": 1}
    assert row["rival_accuracy"] == theirs["accuracy"][-1]["by_seed"][1]
    vote = ours["vote"]["by_seed"][1] - theirs["accuracy"][-1]["by_seed"][1]
    assert cells(row)[10] == f"{second:+.2f}, all layers {vote:+.2f} (1 seed)"
    assert cells(ours)[10].startswith(f"{ours['rival_difference']['mean']:+.2f} ± ")
    shutil.rmtree(tmp_path / "copy" / "runs" / ours["runs"][1])
    row = build_table(EXPERIMENT, Options(tmp_path / "copy", (0, 1)), plan(EXPERIMENT, options))[
        "rows"
    ][0]
    assert "rival_difference" not in row
    assert cells(row)[9:11] == ["", ""]


def test_a_table_is_rebuilt_from_finished_runs_without_running_any(
    finished: tuple[dict, Options, list[Outcome]], tmp_path: Path
) -> None:
    table, options, _ = finished
    copy = Options(tmp_path / "copy", (0, 1))
    assert rebuild(EXPERIMENT, copy) is None
    assert not copy.out.exists()
    shutil.copytree(options.out / "runs", copy.out / "runs")
    failed = copy.out / "runs" / table["rows"][2]["runs"][0]
    (failed / "failed.json").write_text("{}")
    for path in copy.out.glob("runs/*/*.safetensors"):
        path.unlink()  # as published: without weights
    table, again = deepcopy(table), rebuild(EXPERIMENT, copy)
    assert "does not say why" in again["rows"][2].pop("reason")
    del table["rows"][2]["reason"]
    assert again["rows"] == table["rows"]
    assert json.loads((copy.out / "mlp.json").read_text())["rows"][0] == table["rows"][0]


def test_data_not_at_hand_is_skipped_and_what_it_gave_elsewhere_counts(
    finished: tuple[dict, Options, list[Outcome]], tmp_path: Path
) -> None:
    experiment = Experiment("mlp", "A test", ("mnist",), (Row("a", "tmlr", settings=SMALL),))
    options = Options(tmp_path / "out", (0,), data_root=tmp_path)
    (row,) = reproduce(experiment, options)["rows"]
    assert (row["status"], "accuracy" in row) == ("skipped", False)
    assert "mnist is not at hand" in row["reason"]
    assert not (options.out / "runs").exists()
    # Figures of that run, as if another machine had made it.
    (job,) = plan(experiment, options)
    table, theirs, _ = finished
    folder = RunFolder(options.out / "runs" / job.key)
    shutil.copytree(theirs.out / "runs" / table["rows"][0]["runs"][0], folder.path)
    config = job.config.to_dict()
    folder.write_json(folder.config, config)
    folder.write_json(folder.summary, {**folder.read_json(folder.summary), "config": config})
    (row,) = reproduce(experiment, options)["rows"]
    assert (row["status"], row["reason"]) == ("done", "")
    assert row["accuracy"][0]["by_seed"] == table["rows"][0]["accuracy"][0]["by_seed"][:1]


def test_a_run_on_a_file_that_moved_is_kept_and_an_unfinished_one_goes_on(
    tmp_path: Path,
) -> None:
    x, y = torch.rand(40, 6), torch.arange(40) % 4
    held = Dataset("pets", x, y, x.clone(), y.clone(), 4, tuple("abcd"))
    experiment = Experiment(
        "transfer", "A test", ("features",), (Row("a", "tmlr", settings=SMALL),)
    )
    made = tmp_path / "made.safetensors"
    save_features(made, held, {"name": "pets", "dataset": "pets", "class_names": tuple("abcd")})
    keys, seconds = [], []
    for place in ("here", "there"):
        file = feature_file(tmp_path / place, "pets", "resnet50")
        file.parent.mkdir(parents=True)
        shutil.copy(made, file)
        options = Options(tmp_path / "out", (0,), data_root=tmp_path / place)
        (job,) = plan(experiment, options)
        keys.append(job.key)
        assert reproduce(experiment, options)["rows"][0]["status"] == "done"
        folder = RunFolder(options.out / "runs" / job.key)
        seconds.append(folder.read_metrics()[0]["seconds"])
    assert keys[0] == keys[1]
    assert seconds[0] == seconds[1]
    folder.summary.unlink()
    assert reproduce(experiment, options)["rows"][0]["status"] == "done"
    assert folder.read_metrics()[0]["seconds"] == seconds[0]  # no epoch was trained again


def test_a_failed_run_does_not_lose_the_others(
    finished: tuple[dict, Options, list[Outcome]],
) -> None:
    table, _, outcomes = finished
    assert [row["status"] for row in table["rows"]] == ["done", "done", "failed", "done"]
    assert "became" in table["rows"][2]["reason"]
    assert sorted(o.status for o in outcomes) == ["done"] * 6 + ["failed"] * 2


def test_finished_runs_are_kept_and_other_processes_give_the_same(
    finished: tuple[dict, Options, list[Outcome]], tmp_path: Path
) -> None:
    table, options, _ = finished
    jobs = plan(EXPERIMENT, options)
    seen: list[str] = []
    statuses = run_jobs(jobs, options, 1, lambda outcome, *_: seen.append(outcome.status))
    assert seen == ["failed", "failed"]  # only those are tried again
    assert sorted(o.status for o in statuses.values()) == ["failed"] * 2 + ["kept"] * 6
    parallel = reproduce(EXPERIMENT, Options(tmp_path, seeds=(0, 1)), 2)
    assert _accuracies(parallel) == _accuracies(table)
    assert [row["status"] for row in parallel["rows"]] == [row["status"] for row in table["rows"]]


def test_runs_flush_denormal_numbers_and_their_caller_does_not(tmp_path: Path) -> None:
    denormal = 1e-40
    held: list[float] = []
    options = Options(tmp_path, seeds=(0,), rows="theirs")
    jobs = plan(EXPERIMENT, options)
    run_jobs(jobs, options, 1, lambda *_: held.append(torch.tensor(denormal).item()))
    assert held == [0.0]
    assert torch.tensor(denormal).item() > 0
    with _pool(1) as pool:
        assert pool.submit(eval, "__import__('torch').tensor(1e-40).item()").result() == 0.0


def test_an_interrupted_run_resumes_to_the_same_result(tmp_path: Path) -> None:
    options = Options(tmp_path, seeds=(0,))
    (job,) = (j for j in plan(EXPERIMENT, options) if j.row.name == "ours")
    run_jobs([job], options)
    folder = RunFolder(tmp_path / "runs" / job.key)
    full = folder.read_metrics()
    # As a kill after the checkpoint of the last epoch leaves it: the first record is not written again.
    folder.summary.unlink()
    marked = {**full[0], "seconds": 12345.0}
    folder.metrics.write_text(json.dumps(marked) + "\n" + json.dumps(full[1]) + "\n")
    assert run_jobs([job], options)[job.key].status == "done"
    assert folder.read_metrics()[0]["seconds"] == 12345.0
    assert folder.read_metrics()[1]["test_accuracy"] == full[1]["test_accuracy"]
    # A checkpoint torn by a broken disk cannot be resumed: the run starts over.
    folder.summary.unlink()
    folder.checkpoint.write_bytes(b"torn")
    assert run_jobs([job], options)[job.key].status == "done"
    assert folder.read_metrics()[0]["seconds"] != 12345.0
    assert folder.read_metrics()[1]["test_accuracy"] == full[1]["test_accuracy"]

    # So does one whose records were lost: its last accuracy would be that of an earlier epoch.
    for left in ("", json.dumps(marked) + "\n"):
        folder.summary.unlink()
        folder.metrics.write_text(left)
        assert run_jobs([job], options)[job.key].status == "done"
        assert [record["epoch"] for record in folder.read_metrics()] == [1, 2]
        assert folder.read_metrics()[0]["seconds"] != 12345.0


@pytest.mark.parametrize("change", [{"epochs": 1}, {"seed": None}, {"config": {}}])
def test_a_summary_that_is_not_whole_is_no_finished_run(change: dict, tmp_path: Path) -> None:
    options = Options(tmp_path, seeds=(0,))
    (job,) = (j for j in plan(EXPERIMENT, options) if j.row.name == "ours")
    run_jobs([job], options)
    folder = RunFolder(tmp_path / "runs" / job.key)
    whole = folder.read_json(folder.summary)
    damaged = {**whole, **change}
    folder.write_json(folder.summary, {k: v for k, v in damaged.items() if v is not None})
    assert run_jobs([job], options)[job.key].status == "done"
    assert folder.read_json(folder.summary)["test_accuracy"] == whole["test_accuracy"]


def test_runs_of_another_device_are_not_mixed_in(tmp_path: Path) -> None:
    options = Options(tmp_path, seeds=(0,))
    jobs = [j for j in plan(EXPERIMENT, options) if j.row.name == "ours"]
    run_jobs(jobs, options)
    with pytest.raises(ValueError, match="holds runs made on cpu: give runs on cuda:0 an --out"):
        run_jobs(jobs, Options(tmp_path, seeds=(0,), device="cuda:0"))


def test_batch_statistics_are_compared_with_figures_read_with_them(tmp_path: Path) -> None:
    tiny = {"channels": (2,), "symmetric_dim": 4, "epochs": 1, "groups": "2:10"}
    figures = {"digits": {1: 50.0}}
    rows = (
        Row("theirs", "cnn", "cnn", tiny, published=figures, batch_statistics=True),
        Row("plain", "cnn", "cnn", tiny, published=figures),
    )
    experiment = Experiment("cnn", "A test", ("digits",), rows)
    theirs, plain = reproduce(experiment, Options(tmp_path, seeds=(0,)))["rows"]
    read_so = theirs["test_accuracy_batch_statistics"][0]["mean"]
    assert read_so != theirs["accuracy"][0]["mean"]
    assert theirs["accuracy"][0]["difference"] == pytest.approx(read_so - 50)
    assert plain["accuracy"][0]["difference"] == pytest.approx(plain["accuracy"][0]["mean"] - 50)
    assert cells(theirs)[6].startswith("batch stat.")


def test_a_damaged_checkpoint_is_named_and_the_others_are_measured(tmp_path: Path) -> None:
    row = Row("best", "best", settings={"layers": (8, 8), "epochs": 1})
    experiment = Experiment("early-exit", "A test", ("digits",), (row,), measure="exits")
    options = Options(tmp_path, seeds=(0, 1))
    jobs = plan(experiment, options)
    run_jobs(jobs, options)
    RunFolder(tmp_path / "runs" / jobs[0].key).checkpoint.write_bytes(b"torn")
    measured = reproduce(experiment, options)["measured"]
    assert [c["seed"] for c in measured["halves"]] == [1]
    assert jobs[0].key in measured["unavailable"]
    assert "train it again" in measured["unavailable"]
    # What was measured stays when the weights go, here and in a table that is rebuilt.
    RunFolder(tmp_path / "runs" / jobs[1].key).checkpoint.unlink()
    assert reproduce(experiment, options)["measured"] == measured
    assert rebuild(experiment, options)["measured"] == measured


def test_two_calls_do_not_write_to_one_folder(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    options = Options(tmp_path, seeds=(0,))
    with open(tmp_path / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another `spela reproduce` is writing"):
            run_jobs(plan(EXPERIMENT, options), options)


def test_number_of_processes_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="jobs must be at least 1"):
        run_jobs([], Options(tmp_path), 0)
