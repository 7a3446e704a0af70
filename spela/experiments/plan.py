"""From an experiment and what was asked for to the runs it takes, and what cannot be run and why."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from spela.data import (
    canonical_name,
    dataset_names,
    default_data_root,
    is_available,
    load_dataset,
    read_tensor_facts,
)
from spela.experiments.declare import Experiment, Row
from spela.experiments.recipes import make_config
from spela.experiments.unread import unread_settings
from spela.training import RunConfig

__all__ = [
    "QUICK_DATA",
    "Job",
    "Options",
    "data_identity",
    "data_label",
    "feature_files",
    "plan",
    "row_config",
    "run_key",
]

QUICK_DATA = "digits"
QUICK_EPOCHS = 3
FEATURES = "features"


@dataclass(frozen=True)
class Options:
    """What a call of `spela reproduce` asks for.

    Attributes:
        out: The results folder.
        seeds: A run each.
        data: Datasets instead of the experiments' own; empty: theirs.
        epochs: Passes instead of the rows' own; None: theirs.
        quick: Tiny networks on scikit-learn's digits for 3 epochs: a check that everything runs.
        rows: Shell pattern of the row names to run; the others keep what they have.
        data_root: The folder for datasets; None: the default one.
        download: Whether datasets that are not at hand may be downloaded.
        device: Where to train.

    Raises:
        ValueError: If a value is out of range, two datasets would have one name in the tables, or `out` is
            a file.
    """

    out: Path
    seeds: tuple[int, ...] = (0, 1, 2)
    data: tuple[str, ...] = ()
    epochs: int | None = None
    quick: bool = False
    rows: str = "*"
    data_root: Path | None = None
    download: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        named = (canonical_name(data) or os.path.expanduser(data) for data in self.data)
        object.__setattr__(self, "data", tuple(named))
        _check_labels(self.data)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different numbers such as 0,1,2, got {self.seeds}")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out} is a file: give --out a folder")
        if self.quick and self.data:
            raise ValueError(f"--quick runs on {QUICK_DATA} only: leave --data out")

    @property
    def folder(self) -> Path:
        """Where runs and tables go: quick ones apart, so that they are never taken for results."""
        return self.out / "quick" if self.quick else self.out


@dataclass(frozen=True)
class Job:
    """One run of a row.

    Attributes:
        row: The table line.
        config: The run's settings.
        key: Name of its folder, made from the settings: equal settings share a run.
        wanted: Whether the pattern of rows selects it.
        problem: Why its data cannot be used here; empty: it can. A run that was finished elsewhere counts.
    """

    row: Row
    config: RunConfig
    key: str
    wanted: bool
    problem: str = ""


def _check_labels(datasets: Iterable[str]) -> None:
    labels = [data_label(data) for data in dict.fromkeys(datasets)]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(
            f"two datasets are named {twice}, as tables would show them: rename one of the files"
        )


def data_label(data: str) -> str:
    """A dataset's name, or the stem of a file's path.

    Example:
        >>> data_label("mnist"), data_label("features/pets-resnet50.safetensors")
        ('mnist', 'pets-resnet50')
    """
    return data if data in dataset_names() else Path(data).stem


def feature_files(data_root: Path | None) -> tuple[str, ...]:
    """Cached feature files under the data root, which are the transfer experiment's datasets."""
    root = default_data_root() if data_root is None else data_root
    return tuple(str(path) for path in sorted((root / FEATURES).glob("*.safetensors")))


def plan(experiment: Experiment, options: Options) -> list[Job]:
    """The runs of an experiment, row by row, dataset by dataset, seed by seed.

    Args:
        experiment: From the registry.
        options: What was asked for.

    Returns:
        Jobs in the order of the table.

    Raises:
        ValueError: If a dataset asked for by name is unknown, two would have one name in the tables, or
            settings are refused.
        OSError: If a file of data cannot be read.
    """
    datasets = _datasets(experiment, options)
    _check_labels(datasets)
    for data in datasets:
        label = data_label(data)
        if not label.isprintable() or set(label) & set("|<>[]`"):
            raise ValueError(
                f"{label!r} cannot stand in the tables: rename the file, without |, <, >, [, ] and backticks"
            )
    problems = {data: _problem(data, options) for data in datasets}
    jobs = []
    for row in experiment.rows:
        wanted = fnmatchcase(row.name, options.rows)
        for data, problem in problems.items():
            if not _belongs(row, data, experiment, options):
                continue
            for seed in options.seeds:
                config = row_config(experiment, row, data, seed, options)
                jobs.append(Job(row, config, run_key(config), wanted, problem))
    return jobs


def run_key(config: RunConfig) -> str:
    """A folder name that tells what a run is, and differs where any setting or a file of data does."""
    settings = config.to_dict() | {"data": data_identity(config.data)}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    words = f"{config.recipe}-{data_label(config.data)}-s{config.seed}"
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '-', words)}-{digest}"


def data_identity(data: str) -> str:
    """The name of a dataset; label and content of a file, or of a folder's files, wherever it lies."""
    path = Path(data)
    if data in dataset_names() or not path.exists():
        return data
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
    stats = [(file, file.stat()) for file in files]
    contents = (_content(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats)
    return " ".join((path.stem, *contents))


@lru_cache(maxsize=64)
def _content(path: Path, size: int, changed: int) -> str:
    """Hash of a file, cached by size and time of change, so that a changed file is read anew."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _datasets(experiment: Experiment, options: Options) -> tuple[str, ...]:
    if options.quick:
        return (QUICK_DATA,)
    if experiment.data == (FEATURES,):
        return _features(options) or (FEATURES,)
    return options.data or experiment.data


def _features(options: Options) -> tuple[str, ...]:
    """The feature files at hand; of datasets asked for by name theirs, and files asked for by path."""
    found = feature_files(options.data_root)
    if not options.data:
        return found
    paths = tuple(data for data in options.data if data not in dataset_names())
    given = {Path(path).resolve() for path in paths}
    return paths + tuple(
        file
        for file in found
        if read_tensor_facts(Path(file)).get("dataset") in options.data
        and Path(file).resolve() not in given
    )


def _belongs(row: Row, data: str, experiment: Experiment, options: Options) -> bool:
    """Rows made for some of the experiment's datasets leave the others out; other data goes to the first."""
    if not row.data:
        return True
    if data in experiment.data:
        return data in row.data
    return experiment.data[0] in row.data or options.quick


def _problem(data: str, options: Options) -> str:
    """Why a dataset cannot be used here, or nothing."""
    if data == FEATURES:
        root = default_data_root() if options.data_root is None else options.data_root
        of = f" of {', '.join(options.data)}" if options.data else ""
        return (
            f"no feature file (*.safetensors){of} under {root / FEATURES}: make one with "
            "`spela features`"
        )
    if data not in dataset_names():
        if Path(data).exists():
            return ""
        if data in options.data:
            load_dataset(data, options.data_root, download=False)  # raises, and says what is known
        return f"this version does not know the dataset {data!r}"
    if is_available(data, options.data_root):
        return ""
    if not options.download:
        return f"{data} is not at hand: give --data-root, or --download on a machine with internet"
    try:
        load_dataset(data, options.data_root)
    except ValueError as error:
        return str(error)
    return ""


def row_config(
    experiment: Experiment, row: Row, data: str, seed: int, options: Options
) -> RunConfig:
    """The settings of a row's run on one dataset with one seed.

    Args:
        experiment: From the registry.
        row: One of its rows.
        data: A dataset by name, or a file.
        seed: Of the run.
        options: What else was asked for.

    Raises:
        ValueError: If settings are refused.
    """
    settings: dict[str, Any] = dict(row.settings)
    for pattern, others in row.by_data.items():
        if fnmatchcase(data_label(data), pattern):
            settings |= others
    if options.epochs is not None:
        settings["epochs"] = options.epochs
    config = make_config(data, row.recipe, seed, model=row.model, **settings)
    if not options.quick:
        return config
    small = dict(experiment.quick.get(row.model, {}))
    width = small.pop("max_width", 32)
    small = {name: value for name, value in small.items() if name not in unread_settings(config)}
    small |= {
        "epochs": options.epochs or QUICK_EPOCHS,
        "head_epochs": min(config.head_epochs, 1),
        "layers": tuple(min(size, width) for size in config.layers),
        "channels": tuple(min(size, width) for size in config.channels),
    }
    return make_config(data, row.recipe, seed, model=row.model, **{**settings, **small})
