"""From declarations to runs: what is planned, shared, skipped and why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from spela.data import Dataset
from spela.experiments import make_config
from spela.experiments.declare import Experiment, Row
from spela.experiments.plan import Options, plan, run_key
from spela.experiments.registry import EXPERIMENTS, find_experiments
from spela.features import feature_file, save_features
from spela.vectors import VECTOR_KINDS
from spela_kernels import ACTIVATIONS, OBJECTIVES

NONE = Path("/nonexistent")


def _experiment(*rows: Row, data: tuple[str, ...] = ("digits",)) -> Experiment:
    return Experiment("test", "A test", data, rows)


def test_a_run_for_every_row_and_seed_and_equal_settings_share_one() -> None:
    rows = (Row("a", "tmlr"), Row("b", "tmlr", settings={"lr": 2.5}), Row("c", "best"))
    jobs = plan(_experiment(*rows), Options(NONE, seeds=(0, 1)))
    assert [(j.row.name, j.config.seed) for j in jobs] == [
        (name, seed) for name in "abc" for seed in (0, 1)
    ]
    assert len({job.key for job in jobs}) == 4  # b says what the recipe says anyway
    assert not any(job.problem for job in jobs)


def test_every_setting_is_part_of_a_run_s_name() -> None:
    one = make_config("digits", "tmlr")
    assert run_key(one) == run_key(make_config("digits", "tmlr"))
    for change in ({"lr": 1.0}, {"epochs": 3}, {"layers": (9,)}, {"label_noise": 0.1}):
        assert run_key(make_config("digits", "tmlr", **change)) != run_key(one)
    assert "/" not in run_key(make_config("some/where/a file.npz", "tmlr"))


def test_data_that_cannot_be_used_is_named_with_its_reason(tmp_path: Path) -> None:
    experiment = _experiment(Row("x", "tmlr"), data=("digits", "mnist", "pets2"))
    jobs = plan(experiment, Options(NONE, seeds=(0,), data_root=tmp_path))
    problems = {job.config.data: job.problem for job in jobs}
    assert problems["digits"] == ""
    assert "not at hand" in problems["mnist"]
    assert "does not know the dataset" in problems["pets2"]


def test_a_file_of_data_is_known_by_its_content_wherever_it_lies(tmp_path: Path) -> None:
    files = [tmp_path / name / "pets.npz" for name in ("here", "there", "other")]
    for file, content in zip(files, (b"1", b"1", b"2"), strict=True):
        file.parent.mkdir()
        file.write_bytes(content)
    here, there, other = (run_key(make_config(str(file), "tmlr")) for file in files)
    assert here == there
    assert here != other
    files[0].write_bytes(b"2")
    os.utime(files[0], ns=(0, 0))
    assert run_key(make_config(str(files[0]), "tmlr")) == other


def test_data_asked_for_by_name_must_be_known() -> None:
    with pytest.raises(ValueError, match="unknown dataset 'digit': did you mean 'digits'"):
        plan(_experiment(Row("x", "tmlr")), Options(NONE, data=("digit",)))


def test_rows_of_one_dataset_leave_the_others_out() -> None:
    rows = (Row("grey", "tmlr", data=("digits",)), Row("colour", "tmlr", data=("svhn",)))
    experiment = _experiment(*rows, data=("digits", "svhn"))
    names = [j.row.name for j in plan(experiment, Options(NONE, (0,), data=("digits",)))]
    assert names == ["grey"]


def test_the_pattern_of_rows_keeps_the_others_in_the_table() -> None:
    jobs = plan(_experiment(Row("a", "tmlr"), Row("b", "best")), Options(NONE, (0,), rows="b*"))
    assert [(job.row.name, job.wanted) for job in jobs] == [("a", False), ("b", True)]


def test_epochs_replace_the_rows_own() -> None:
    jobs = plan(_experiment(Row("a", "tmlr", settings={"epochs": 9})), Options(NONE, (0,)))
    assert jobs[0].config.epochs == 9
    jobs = plan(
        _experiment(Row("a", "tmlr", settings={"epochs": 9})), Options(NONE, (0,), epochs=2)
    )
    assert jobs[0].config.epochs == 2


def test_quick_runs_are_small_on_digits_and_live_apart() -> None:
    for experiment in EXPERIMENTS.values():
        options = Options(NONE, (0,), quick=True)
        assert options.folder == NONE / "quick"
        for job in plan(experiment, options):
            config = job.config
            assert config.data == "digits"
            assert config.total_epochs <= 4
            assert max((*config.layers, *config.channels, config.width)) <= 32


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_declarations_hold_together(name: str) -> None:
    """Every declared row makes a checked config, on any of its datasets."""
    experiment = EXPERIMENTS[name]
    assert set(experiment.panels) >= {row.panel for row in experiment.rows if row.panel}
    for row in experiment.rows:
        make_config("digits", row.recipe, model=row.model, **row.settings)
        assert set(row.data) <= set(experiment.data)


@pytest.mark.parametrize(
    "name", [name for name, found in EXPERIMENTS.items() if any(row.rival for row in found.rows)]
)
def test_rivals_have_as_many_epochs_and_the_same_hidden_layers(name: str) -> None:
    rows = {row.name: row for row in EXPERIMENTS[name].rows}
    for row in rows.values():
        if not row.rival:
            continue
        rival = rows[row.rival]
        ours, theirs = (
            make_config("digits", r.recipe, model=r.model, **r.settings) for r in (row, rival)
        )
        assert theirs.total_epochs == ours.total_epochs, row.name
        assert theirs.channels == ours.channels, row.name
        assert (theirs.test_share, theirs.noise, theirs.label_noise, theirs.resize) == (
            ours.test_share,
            ours.noise,
            ours.label_noise,
            ours.resize,
        ), row.name
        # A local network's last layer that is as wide as there are classes is backprop's output.
        hidden = ours.layers[:-1] if ours.layers[-1:] == (10,) else ours.layers
        assert theirs.layers == hidden, row.name
        assert (row.data, row.by_data) == (rival.data, rival.by_data), row.name


def test_settings_by_data_replace_the_rows() -> None:
    row = Row("a", "tmlr", settings={"lr": 1.0}, by_data={"dig*": {"lr": 2.0}, "mn*": {"lr": 3.0}})
    jobs = plan(_experiment(row), Options(NONE, (0,)))
    assert jobs[0].config.lr == 2.0


def test_transfer_takes_the_feature_files_of_the_data_asked_for(tmp_path: Path) -> None:
    def features(data: str, classes: int) -> Path:
        x = torch.rand(2 * classes, 8)
        y = torch.arange(2 * classes) % classes
        names = tuple(map(str, range(classes)))
        path = feature_file(tmp_path, data, "resnet50")
        held = Dataset(data, x, y, x.clone(), y.clone(), classes, names)
        save_features(path, held, {"name": data, "dataset": data, "class_names": names})
        return path

    few, many = features("pets", 37), features("aircraft", 100)
    transfer = EXPERIMENTS["transfer"]

    def layers(*data: str) -> dict[str, tuple[int, ...]]:
        options = Options(NONE, (0,), data=data, data_root=tmp_path)
        return {job.config.data: job.config.layers for job in plan(transfer, options)}

    assert layers() == {str(few): (512, 64), str(many): (1024, 1024)}
    assert layers("aircraft") == {str(many): (1024, 1024)}
    assert layers(str(few)) == {str(few): (512, 64)}
    # Images are no features: a name without a file is skipped.
    jobs = plan(transfer, Options(NONE, (0,), data=("digits",), data_root=tmp_path))
    assert all("no feature file (*.safetensors) of digits" in job.problem for job in jobs)


@pytest.mark.parametrize(
    "wrong", [{"seeds": ()}, {"seeds": (1, 1)}, {"epochs": 0}, {"quick": True, "data": ("mnist",)}]
)
def test_options_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"must be|leave --data out"):
        Options(NONE, **wrong)


def test_results_do_not_go_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file: give --out a folder"):
        Options(tmp_path / "file")


def test_names_are_checked() -> None:
    assert [e.name for e in find_experiments("all")] == list(EXPERIMENTS)
    with pytest.raises(ValueError, match="did you mean 'ablation'"):
        find_experiments("ablations")
    with pytest.raises(ValueError, match="two rows called 'a'"):
        _experiment(Row("a", "tmlr"), Row("a", "best"))
    with pytest.raises(ValueError, match="no row 'b'"):
        _experiment(Row("a", "tmlr", rival="b"))


def test_a_row_added_to_a_table_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (OBJECTIVES, ACTIVATIONS, VECTOR_KINDS):
        monkeypatch.setitem(table, "mine", next(iter(table.values())))
    names = ("objective", "conv_objective", "activation", "vectors")
    config = make_config("digits", model="cnn", layers=(8,), **dict.fromkeys(names, "mine"))
    assert [getattr(config, name) for name in names] == ["mine"] * 4
    for name in names:
        with pytest.raises(ValueError, match=rf"unknown {name} 'other': use one of .*, mine"):
            make_config("digits", **{name: "other"})


def test_rows_of_another_dataset_leave_data_of_ones_own_out(tmp_path: Path) -> None:
    rows = (Row("first", "tmlr", data=("mnist",)), Row("second", "tmlr", data=("kmnist",)))
    experiment = Experiment("mlp", "A test", ("mnist", "kmnist"), rows)
    jobs = plan(experiment, Options(tmp_path, (0,), data=("digits",)))
    assert [job.row.name for job in jobs] == ["first"]
